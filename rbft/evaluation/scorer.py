"""One video to one prediction: label likelihoods, and greedy text read strictly (readings, 12). Bad videos become error rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rbft.engines.base import Engine
from rbft.engines.labels import probabilities
from rbft.errors import EngineGoneError, RBFTError
from rbft.records import Example, Prediction, VideoSpec
from rbft.task import Task

if TYPE_CHECKING:
    from rbft.evaluation.looking.masking import Masker
    from rbft.video.budget import FrameBudget
    from rbft.video.pool import DecodePool


class Scorer:
    """Uses an engine and a pool; any number of `predict` calls may run at once, as many as `budget` has room for."""

    def __init__(
        self,
        engine: Engine,
        pool: DecodePool,
        task: Task,
        spec: VideoSpec,
        *,
        max_new_tokens: int,
        budget: FrameBudget,
        masker: Masker | None = None,
    ) -> None:
        """With a `masker` the engine sees every clip behind its masks (paper, Table 5)."""
        self._engine = engine
        self._pool = pool
        self._task = task
        self._spec = spec
        self._max_new_tokens = max_new_tokens
        self._budget = budget
        self._masker = masker

    async def predict(self, example: Example) -> Prediction:
        """What the engine's model says about `example`. Raises `EngineGoneError` only."""
        masked_share: float | None = None
        async with self._budget.place(self._spec) as place:
            messages = self._task.question_messages(example.context)
            try:
                clip = await self._pool.decode_async(example.uri, self._spec, example.start_s, example.end_s)
                place.hold(clip)
                if self._masker is not None:
                    masked = await self._masker.mask(example.id, clip)
                    clip, masked_share = masked.clip, masked.share
                answer = await self._engine.answer(clip, messages, self._task.labels, self._max_new_tokens)
            except EngineGoneError:
                raise
            except RBFTError as error:
                return Prediction(example.id, example.label, None, error_code=error.code, error_message=str(error))
        shares = probabilities(answer.logprobs)
        return Prediction(
            id=example.id,
            label=example.label,
            predicted=max(shares, key=lambda label: shares[label]),
            probabilities=shares,
            logprobs=answer.logprobs,
            generated=answer.generated.text,
            generated_label=self._task.parse_label(answer.generated.text),
            masked_share=masked_share,
        )
