"""One video to one rationale: decode, ask, parse, note where it came from. A video that cannot be used becomes an error row."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rbft.config import GenerationConfig
from rbft.engines.base import Engine, Sampling
from rbft.errors import EngineGoneError, RBFTError
from rbft.records import Example, Rationale, VideoSpec
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
        self._seed = seed
        self._provenance = provenance
        self._budget = budget

    async def write(self, example: Example, sample: int = 0) -> Rationale:
        """The rationale of `example`; an error row if the video or the request fails. Raises `EngineGoneError` only."""
        async with self._budget.place(self._spec) as place:
            started = time.monotonic()
            try:
                clip = await self._pool.decode_async(example.uri, self._spec, example.start_s, example.end_s)
                place.hold(clip)
                decoded = time.monotonic()
                seed = derive_seed(self._seed, "rationale", example.id, sample)
                sampling = Sampling(self._generation.max_new_tokens, self._generation.temperature, seed)
                generated = await self._engine.generate(clip, self._task.rationale_messages(example.context), sampling)
            except EngineGoneError:
                raise
            except RBFTError as error:
                return Rationale(example.id, sample, error_code=error.code, error_message=str(error), provenance=self._provenance)
        return Rationale(
            id=example.id,
            sample=sample,
            text=generated.text,
            sections=self._task.parse_sections(generated.text),
            num_prompt_tokens=generated.num_prompt_tokens,
            num_tokens=generated.num_tokens,
            finish_reason=generated.finish_reason,
            provenance=self._provenance
            | {
                "num_frames": clip.num_frames,
                "fps": clip.fps,
                "decoder": clip.backend,
                "decode_s": round(decoded - started, 4),
                "generate_s": round(time.monotonic() - decoded, 4),
            },
        )
