"""One model's answers about a video: decode in a child process, ask the engine."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbft.api import CalibrationFacts, ClassifyAnswer, ModelVersion, RationaleAnswer
from rbft.engines.base import Generated, Sampling, StreamingEngine
from rbft.engines.labels import probabilities
from rbft.errors import DecoderCrashError, EngineError
from rbft.evaluation.calibration import calibrate_one
from rbft.rationales.gates import TEXT_GATES, check_rationale
from rbft.records import Clip, Rationale, VideoSpec
from rbft.task import Task
from rbft.video.pool import DecodePool
from serve.clips import Seen
from serve.model import ServedModel
from serve.service import facts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Writer:
    """A model that writes rationales, in an engine of its own."""

    engine: StreamingEngine
    model: ServedModel


class VideoClassifier:
    """Owns an engine, that of the `writer` if another model writes the rationales, and the decoders beside them. See
    `serve.service.Classifier`."""

    def __init__(
        self, engine: StreamingEngine, decoders: DecodePool, model: ServedModel, sampling: Sampling, writer: Writer | None = None
    ) -> None:
        self._engine = engine
        self._decoders = decoders
        self._model = model
        self._sampling = sampling
        self._writer = writer or Writer(engine, model)

    @property
    def task(self) -> Task:
        return self._model.task

    @property
    def version(self) -> ModelVersion:
        return self._model.version

    @property
    def rationale_task(self) -> Task:
        return self._writer.model.task

    @property
    def rationale_version(self) -> ModelVersion:
        return self._writer.model.version

    @property
    def spec(self) -> VideoSpec:
        return self._model.spec

    @property
    def lineage(self) -> dict[str, Any]:
        return self._model.lineage

    @property
    def calibration(self) -> CalibrationFacts | None:
        fitted = self._model.calibration
        if fitted is None:
            return None
        return CalibrationFacts(temperature=fitted.temperature, threshold=fitted.threshold, num_clips=fitted.num_clips)

    async def look(self, path: Path) -> Clip:
        """The video decoded. Once more if its decoder has died, which may not have been the video's doing; twice, and it was."""
        try:
            return await self._decoders.decode_async(str(path), self._model.spec)
        except DecoderCrashError as error:
            logger.warning("decoding once more after %s", error.code)
            return await self._decoders.decode_async(str(path), self._model.spec)

    async def classify(self, clip: Clip, context: str | None, threshold: float | None) -> ClassifyAnswer:
        """The label likelihoods normalised over the labels, as evaluation computes and calibrates them."""
        logprobs = await self._engine.score(clip, self.task.question_messages(context), self.task.labels)
        calibration = self._model.calibration
        if calibration is None:
            by_label = probabilities(logprobs)
            label = max(by_label, key=by_label.__getitem__)
        else:
            by_label, label = calibrate_one(logprobs, calibration)
        if threshold is not None:
            first, second = self.task.labels
            label = second if by_label[second] >= threshold else first
        return ClassifyAnswer(
            label=label,
            probabilities=dict(sorted(by_label.items(), key=lambda item: -item[1])),
            threshold=calibration.threshold if threshold is None and calibration else threshold,
            calibration=self.calibration,
            model=self.version,
            video=facts(clip),
        )

    async def explain(self, seen: Seen) -> AsyncGenerator[str | RationaleAnswer, None]:
        """What the writer's model writes when it is asked with the rationale prompt of its task."""
        messages = self.rationale_task.rationale_messages(seen.context)
        said, written = "", None
        async with aclosing(self._writer.engine.stream(seen.clip, messages, self._sampling)) as texts:
            async for written in texts:
                # Half a character, or a space that may turn out to be the last, is not said yet.
                if written.text.startswith(said) and len(written.text) > len(said):
                    yield written.text[len(said) :]
                    said = written.text
        if written is None:
            raise EngineError("the engine ended without a text")
        yield self._answer(seen, written)

    async def check_health(self) -> None:
        await self._engine.check_health()
        if self._writer.engine is not self._engine:
            await self._writer.engine.check_health()

    def close(self) -> None:
        """End the decoders and the engines; idempotent."""
        with ExitStack() as closing:  # all of them, whatever one of them says
            for close in (self._writer.engine.close, self._engine.close, self._decoders.close):
                closing.callback(close)

    def _answer(self, seen: Seen, written: Generated) -> RationaleAnswer:
        rationale = Rationale(id="", sample=0, text=written.text, finish_reason=written.finish_reason)
        failed = check_rationale(rationale, self.rationale_task, seen.label)
        gates = [gate for gate in TEXT_GATES if seen.label is not None or gate != "agrees_with_label"]
        return RationaleAnswer(
            text=written.text,
            sections=self.rationale_task.parse_sections(written.text),
            gates={gate: gate not in failed for gate in gates},
            finish_reason=written.finish_reason,
            num_tokens=written.num_tokens,
            num_prompt_tokens=written.num_prompt_tokens,
            num_cached_tokens=written.num_cached_tokens,
            model=self.rationale_version,
            video=facts(seen.clip),
        )
