"""One model's answers about a video file: decode in a child process, ask the engine."""

from __future__ import annotations

import time
from pathlib import Path

from rbft.api import ClassifyAnswer, ModelVersion, RationaleAnswer, VideoFacts
from rbft.engines.base import Engine, Sampling
from rbft.engines.labels import probabilities
from rbft.records import Clip
from rbft.task import Task
from rbft.video.pool import DecodePool
from serve.model import ServedModel


class VideoClassifier:
    """Owns an engine and the decoders beside it. See `serve.app.Classifier`."""

    def __init__(self, engine: Engine, decoders: DecodePool, model: ServedModel, sampling: Sampling) -> None:
        self._engine = engine
        self._decoders = decoders
        self._model = model
        self._sampling = sampling

    @property
    def task(self) -> Task:
        return self._model.task

    @property
    def version(self) -> ModelVersion:
        return self._model.version

    async def classify(self, path: Path, context: str | None) -> ClassifyAnswer:
        """The likeliest label and the label likelihoods normalised over the labels, as evaluation computes them."""
        clip, decode_s = await self._decode(path)
        started = time.perf_counter()
        by_label = probabilities(await self._engine.score(clip, self.task.question_messages(context), self.task.labels))
        return ClassifyAnswer(
            label=max(by_label, key=by_label.__getitem__),
            probabilities=by_label,
            model=self.version,
            video=_facts(clip),
            timing_s={"decode": decode_s, "engine": time.perf_counter() - started},
        )

    async def rationale(self, path: Path, context: str | None) -> RationaleAnswer:
        """What the model writes when it is asked with the task's rationale prompt."""
        clip, decode_s = await self._decode(path)
        started = time.perf_counter()
        written = await self._engine.generate(clip, self.task.rationale_messages(context), self._sampling)
        return RationaleAnswer(
            text=written.text,
            sections=self.task.parse_sections(written.text),
            finish_reason=written.finish_reason,
            num_tokens=written.num_tokens,
            model=self.version,
            video=_facts(clip),
            timing_s={"decode": decode_s, "engine": time.perf_counter() - started},
        )

    async def check_health(self) -> None:
        await self._engine.check_health()

    def close(self) -> None:
        """End the decoders and the engine; idempotent."""
        self._decoders.close()
        self._engine.close()

    async def _decode(self, path: Path) -> tuple[Clip, float]:
        started = time.perf_counter()
        clip = await self._decoders.decode_async(str(path), self._model.spec)
        return clip, time.perf_counter() - started


def _facts(clip: Clip) -> VideoFacts:
    return VideoFacts(num_frames=clip.num_frames, fps=clip.fps, duration_s=clip.source_duration_s)
