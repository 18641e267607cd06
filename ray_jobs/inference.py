"""Videos through engines: a Ray Data plan over a pool of actors, each of which owns an engine and decodes beside it.

    work (videos, what to ask, where rows go) -> blocks -> actors -> parts on disk -> one summary row a block back to the driver

An actor writes a block's rows itself, as one part that appears whole or not at all (`rbft.rows`); what is on disk is what is done. So a
killed actor costs its block, a killed driver the blocks under way, and submitting again asks only for ids that have no row.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import warnings
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

from ray_jobs.progress import Progress
from ray_jobs.ray_runtime import ensure_ray, reason
from rbft import rows
from rbft.config import ModelConfig, RunConfig
from rbft.engines.base import Engine
from rbft.errors import EngineGoneError, JobError
from rbft.evaluation.predictions import predictions_table
from rbft.evaluation.scorer import Scorer
from rbft.rationales.table import rationales_table
from rbft.rationales.worker import RationaleWorker
from rbft.records import Example
from rbft.task import Task
from rbft.video.pool import DecodePool

Kind = Literal["rationale", "prediction"]
EngineName = Literal["vllm", "hf"]

MAX_ACTOR_RESTARTS = 4
"""A video that takes its actor down does so again; unbounded restarts (Ray's default) would loop for ever."""


@dataclass(frozen=True)
class Work:
    """Videos to be asked the same thing of the same model, and the folder their rows go to."""

    kind: Kind
    folder: str
    examples: Sequence[Example]
    model: ModelConfig
    task: Task
    provenance: dict[str, Any]


def run_inference(config: RunConfig, engine: EngineName, work: Sequence[Work], progress: Progress | None = None) -> float:
    """Do all of `work`, and tell `progress` as blocks end. `config` says how: engine, frames, sampling, seed.

    An actor loads a model when a block asks for another than it has, so work should be ordered by model.
    Comes back with the seconds until the first block was done, which are mostly the start of Ray and engines.
    Raises `JobError` if blocks were lost for good (actors that died too often).
    """
    import ray
    from ray.data import ActorPoolStrategy
    from ray.util.annotations import RayDeprecationWarning

    blocks = [
        _block(item, item.examples[start : start + config.engine.rows_per_block])
        for item in work
        for start in range(0, len(item.examples), config.engine.rows_per_block)
    ]
    if not blocks:
        return 0.0
    started, first_block_s = time.monotonic(), 0.0
    ensure_ray()
    # One row a block: Ray Data moves descriptions of work, a few kilobytes each; frames never leave the actor.
    dataset = ray.data.from_arrow([pa.table({"block": [json.dumps(block)]}) for block in blocks])
    with warnings.catch_warnings():
        # Ray 2.60 calls these two deprecated, names no successor, and retries for ever without them.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        results = dataset.map_batches(
            EngineActor,
            fn_constructor_args=(config, engine),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(config.engine.num_actors, len(blocks)), max_tasks_in_flight_per_actor=2),
            num_cpus=config.engine.num_cpus,
            num_gpus=config.engine.num_gpus * config.engine.tensor_parallel_size,
            max_restarts=MAX_ACTOR_RESTARTS,
            max_task_retries=MAX_ACTOR_RESTARTS,
        )
    try:
        for row in results.iter_rows():
            first_block_s = first_block_s or time.monotonic() - started
            if progress is not None:
                progress.add(row["num_rows"], row["num_errors"])
    except ray.exceptions.RayError as error:
        raise JobError(f"inference stopped: {reason(error)}; what was done is kept, submit the job again to go on") from error
    return first_block_s


class EngineActor:
    """One engine, one decode pool, in one Ray actor. Runs in the actor's event loop."""

    def __init__(self, config: RunConfig, engine: EngineName) -> None:
        self._config = config
        self._engine_name = engine
        self._engine: Engine | None = None
        self._model: ModelConfig | None = None
        self._in_flight = 0
        self._idle = asyncio.Condition()
        video = config.video
        self._pool = DecodePool(config.engine.decode_workers, video.timeout_s, video.memory_limit_bytes)

    async def __call__(self, batch: pa.Table) -> AsyncIterator[dict[str, list[Any]]]:
        for row in batch.to_pylist():
            block = json.loads(row["block"])
            try:
                table = await self._do(block)
            except EngineGoneError as error:
                if self._engine is None:
                    raise  # It could not even start; another actor could not either.
                # An actor with a dead engine would fail every block it is given; Ray starts another in its place.
                print(f"engine gone, actor exits: {error}", flush=True)
                os._exit(1)
            rows.write_part(block["folder"], table)
            num_errors = table.num_rows - table["error_code"].null_count
            yield {"num_rows": [table.num_rows], "num_errors": [num_errors]}

    async def _do(self, block: dict[str, Any]) -> pa.Table:
        engine = await self._acquire(ModelConfig.model_validate(block["model"]))
        try:
            return await self._ask(engine, block)
        finally:
            async with self._idle:
                self._in_flight -= 1
                self._idle.notify_all()

    async def _ask(self, engine: Engine, block: dict[str, Any]) -> pa.Table:
        examples = [Example(**row) for row in block["examples"]]
        config, spec = self._config, self._config.video.spec()
        task = Task.model_validate(block["task"])
        max_in_flight = 2 * config.engine.max_num_seqs
        if block["kind"] == "rationale":
            worker = RationaleWorker(
                *(engine, self._pool, task, spec, config.generation),
                seed=config.seed,
                provenance=block["provenance"],
                max_in_flight=max_in_flight,
            )
            return rationales_table(await asyncio.gather(*(worker.write(example) for example in examples)))
        max_new_tokens = config.evaluation.max_new_tokens
        scorer = Scorer(engine, self._pool, task, spec, max_new_tokens=max_new_tokens, max_in_flight=max_in_flight)
        return predictions_table(await asyncio.gather(*(scorer.predict(example) for example in examples)))

    async def _acquire(self, model: ModelConfig) -> Engine:
        """The engine for `model`, counted as in use: the one at hand, or a new one in its place once nobody uses that."""
        async with self._idle:
            await self._idle.wait_for(lambda: self._model == model or self._in_flight == 0)
            if self._engine is None or self._model != model:
                # Never other weights in a running engine: its caches would answer for the old ones.
                if self._engine is not None:
                    self._engine.close()
                    self._engine = None
                self._engine, self._model = self._start(model), model
            self._in_flight += 1
            return self._engine

    def _start(self, model: ModelConfig) -> Engine:
        spec = self._config.video.spec()
        if self._engine_name == "hf":
            from rbft.engines.hf import HFEngine

            return HFEngine(model, spec, max_batch_size=self._config.engine.max_num_seqs)
        from rbft.engines.vllm import VllmEngine

        return VllmEngine(model, self._config.engine, spec, self._config.seed)


def _block(work: Work, examples: Sequence[Example]) -> dict[str, Any]:
    return {
        "kind": work.kind,
        "folder": work.folder,
        "model": work.model.model_dump(mode="json"),
        "task": work.task.model_dump(mode="json"),
        "provenance": work.provenance,
        "examples": [asdict(example) for example in examples],
    }
