"""What an engine's actor tells Ray's metrics. Prometheus finds them behind `ray_`, and counters with `_total` at their end.

rbft_inference_videos            answered, by kind and error code ("" for none); rate: videos a second
rbft_inference_tokens            generated; rate: tokens a second
rbft_inference_requests          in the engine now; short of `max_num_seqs` it could take more
rbft_inference_clips             decoded or being decoded; rbft_inference_frame_bytes: what they hold
rbft_inference_idle_seconds      in which the engine had no request; rate: its idle share
rbft_inference_decode_seconds    of decoding, waiting for a decoder included; rate: decodes wanted at a time
rbft_inference_suspect_blocks    blocks that are asked again video by video, as an engine died with them

Each has the run as a label.
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

NOT_YET = 1e-9
"""What a counter begins with that alarms look at: Prometheus sees a rise only of what was there before, and Ray's counters take no 0."""


class EngineMetrics:
    """The metrics of one actor. Made inside it, where Ray is."""

    def __init__(self, run: str, budget: FrameBudget) -> None:
        from ray.util.metrics import Counter, Gauge

        self._videos = Counter("rbft_inference_videos", "Videos answered, by kind and error code.", ("run", "kind", "code"))
        self._tokens = Counter("rbft_inference_tokens", "Tokens generated.", ("run",))
        self._decode_s = Counter("rbft_inference_decode_seconds", "Decoding, waiting for a decoder included.", ("run",))
        self._idle_s = Counter("rbft_inference_idle_seconds", "Time in which the engine had no request.", ("run",))
        self._suspects = Counter("rbft_inference_suspect_blocks", "Blocks that are asked again, as an engine died with them.", ("run",))
        self._requests = Gauge("rbft_inference_requests", "Requests in the engine.", ("run",))
        self._clips = Gauge("rbft_inference_clips", "Clips decoded or being decoded.", ("run",))
        self._bytes = Gauge("rbft_inference_frame_bytes", "Frames in flight, those of clips not yet decoded at their most.", ("run",))
        for metric in (self._videos, self._tokens, self._decode_s, self._idle_s, self._suspects, self._requests, self._clips, self._bytes):
            metric.set_default_tags({"run": run})
        self._suspects.inc(NOT_YET)
        self._budget = budget
        self._num_requests = 0
        self._idle_since: float | None = None

    def begin_request(self) -> None:
        if self._num_requests == 0 and self._idle_since is not None:
            self._idle_s.inc(max(NOT_YET, time.monotonic() - self._idle_since))
        self._count(+1)

    def end_request(self, num_tokens: int = 0) -> None:
        self._count(-1)
        if self._num_requests == 0:
            self._idle_since = time.monotonic()
        if num_tokens:
            self._tokens.inc(num_tokens)

    def count_decode(self, seconds: float) -> None:
        self._decode_s.inc(max(NOT_YET, seconds))

    def count_suspects(self) -> None:
        """A block that an engine died with is begun again."""
        self._suspects.inc()

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
