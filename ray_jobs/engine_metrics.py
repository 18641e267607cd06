"""What an engine's actor tells Ray's metrics, for the dashboard and for Prometheus, where they all begin with `ray_rbft_`.

videos            answered, by kind and error code ("" for none); rate: videos a second
generated_tokens  rate: tokens a second
engine_requests   in the engine now; short of `max_num_seqs` it could take more
clips_in_flight   decoded or being decoded; frame_bytes: what they hold
engine_idle_s     seconds in which the engine had no request; rate: its idle share
decode_s          seconds of decoding, waiting for a decoder included; rate: decodes wanted at a time
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from rbft.engines.base import Answer, Engine, Generated, Sampling
from rbft.errors import EngineGoneError
from rbft.records import Clip, VideoSpec
from rbft.task import Message
from rbft.video.budget import FrameBudget
from rbft.video.pool import DecodePool


class EngineMetrics:
    """The metrics of one actor. Made inside it, where Ray is."""

    def __init__(self, budget: FrameBudget) -> None:
        from ray.util.metrics import Counter, Gauge

        self._videos = Counter("rbft_videos", "Videos answered, by kind and error code.", ("kind", "code"))
        self._tokens = Counter("rbft_generated_tokens", "Tokens generated.")
        self._decode_s = Counter("rbft_decode_s", "Seconds of decoding, waiting for a decoder included.")
        self._idle_s = Counter("rbft_engine_idle_s", "Seconds in which the engine had no request.")
        self._requests = Gauge("rbft_engine_requests", "Requests in the engine.")
        self._clips = Gauge("rbft_clips_in_flight", "Clips decoded or being decoded.")
        self._bytes = Gauge("rbft_frame_bytes", "Bytes of frames in flight, those of clips not yet decoded at their most.")
        self._budget = budget
        self._num_requests = 0
        self._idle_since: float | None = None

    def begin_request(self) -> None:
        if self._num_requests == 0 and self._idle_since is not None:
            self._idle_s.inc(max(1e-9, time.monotonic() - self._idle_since))
        self._count(+1)

    def end_request(self, num_tokens: int = 0) -> None:
        self._count(-1)
        if self._num_requests == 0:
            self._idle_since = time.monotonic()
        if num_tokens:
            self._tokens.inc(num_tokens)

    def count_decode(self, seconds: float) -> None:
        self._decode_s.inc(max(1e-9, seconds))

    def count_rows(self, kind: str, table: pa.Table) -> None:
        """The rows that are written now."""
        for code in table["error_code"].to_pylist():
            self._videos.inc(1, {"kind": kind, "code": code or ""})

    def _count(self, change: int) -> None:
        self._num_requests += change
        self._requests.set(self._num_requests)
        self._clips.set(self._budget.num_clips)
        self._bytes.set(self._budget.num_bytes)


class MeteredPool(DecodePool):
    """A `DecodePool` whose seconds are counted."""

    def __init__(self, metrics: EngineMetrics, num_workers: int, timeout_s: float, memory_limit_bytes: int) -> None:
        super().__init__(num_workers, timeout_s, memory_limit_bytes)
        self._metrics = metrics

    async def decode_async(self, uri: str | Path, spec: VideoSpec, start_s: float | None = None, end_s: float | None = None) -> Clip:
        started = time.monotonic()
        try:
            return await super().decode_async(uri, spec, start_s, end_s)
        finally:
            self._metrics.count_decode(time.monotonic() - started)


class MeteredEngine:
    """An `Engine` whose requests are counted, and which counts as gone when it leaves one unanswered for `timeout_s` (None: never)."""

    def __init__(self, engine: Engine, metrics: EngineMetrics, timeout_s: float | None) -> None:
        self._engine, self._metrics, self._timeout_s = engine, metrics, timeout_s

    async def generate(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> Generated:
        generated: Generated = await self._metered(self._engine.generate(clip, messages, sampling))
        return generated

    async def score(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str]) -> dict[str, float]:
        scores: dict[str, float] = await self._metered(self._engine.score(clip, messages, labels))
        return scores

    async def answer(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str], max_new_tokens: int) -> Answer:
        answer: Answer = await self._metered(self._engine.answer(clip, messages, labels, max_new_tokens))
        return answer

    async def check_health(self) -> None:
        await self._engine.check_health()

    def close(self) -> None:
        self._engine.close()

    async def _metered(self, request: Any) -> Any:
        self._metrics.begin_request()
        num_tokens = 0
        try:
            result = await asyncio.wait_for(request, self._timeout_s)
            generated = result.generated if isinstance(result, Answer) else result
            num_tokens = generated.num_tokens if isinstance(generated, Generated) else 0
            return result
        except TimeoutError:
            why = f"no answer to a request in engine.request_timeout_s, {self._timeout_s} s; the engine hangs"
            raise EngineGoneError(why) from None
        finally:
            self._metrics.end_request(num_tokens)
