"""One video to one rationale: decode, ask, parse, note where it came from. A video that cannot be used becomes an error row."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from rbft.config import GatesConfig, GenerationConfig
from rbft.engines.base import Engine, Sampling
from rbft.errors import EngineGoneError, RBFTError
from rbft.rationales.draws import Draw, draw_rationale
from rbft.records import Clip, Example, Rationale, VideoSpec
from rbft.seeds import derive_seed
from rbft.task import Task

if TYPE_CHECKING:
    from rbft.video.budget import FrameBudget
    from rbft.video.pool import DecodePool


class RationaleWorker:
    """Owns no engine and no pool, only uses them; any number of `write` calls may run at once, as many as `budget` has room for."""

    def __init__(
        self,
        engine: Engine,
        pool: DecodePool,
        task: Task,
        spec: VideoSpec,
        generation: GenerationConfig,
        gates: GatesConfig,
        *,
        seed: int,
        provenance: dict[str, Any],
        budget: FrameBudget,
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._task = task
        self._spec = spec
        self._generation = generation
        self._gates = gates
        self._seed = seed
        self._provenance = provenance
        self._budget = budget

    async def write(self, example: Example) -> Rationale:
        """The rationale of `example`; an error row if the video or a request fails. Raises `EngineGoneError` only."""
        async with self._budget.place(self._spec) as place:
            started = time.monotonic()
            try:
                clip = await self._pool.decode_async(example.uri, self._spec, example.start_s, example.end_s)
                place.hold(clip)
                seen = {
                    "num_frames": clip.num_frames,
                    "fps": clip.fps,
                    "decoder": clip.backend,
                    "decode_s": round(time.monotonic() - started, 4),
                }
                ask = partial(self._ask, example, clip, self._provenance | seen)
                return await draw_rationale(ask, self._task, example.label, self._generation.temperature, self._gates)
            except EngineGoneError:
                raise
            except RBFTError as error:
                return Rationale(example.id, 0, error_code=error.code, error_message=str(error), provenance=self._provenance)

    async def _ask(self, example: Example, clip: Clip, provenance: dict[str, Any], draw: Draw) -> Rationale:
        started = time.monotonic()
        # By (seed, id, sample) alone, so that it depends on no other video, no order and no number of actors.
        seed = derive_seed(self._seed, "rationale", example.id, draw.sample)
        messages = self._task.rationale_messages(example.context)
        if draw.is_hinted:
            messages = self._task.hinted_rationale_messages(str(example.label), example.context)
        generated = await self._engine.generate(clip, messages, Sampling(self._generation.max_new_tokens, draw.temperature, seed))
        return Rationale(
            id=example.id,
            sample=draw.sample,
            text=generated.text,
            sections=self._task.parse_sections(generated.text),
            num_prompt_tokens=generated.num_prompt_tokens,
            num_tokens=generated.num_tokens,
            finish_reason=generated.finish_reason,
            provenance=provenance | {"label_in_prompt": draw.is_hinted, "generate_s": round(time.monotonic() - started, 4)},
        )
