"""The actor that asks: one engine and one pool of decoders in one Ray actor, which works on a few blocks at a time.

It writes a block's rows itself, as one part (`rbft.rows`), and notes which videos are in its engine (`rbft.attempts`), because an actor
with a dead engine exits and another takes its place. Videos that may have killed it are then asked about one at a time, with nothing
else in the engine, and one that kills engines all by itself gets the error row `engine_crash`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import psutil
import pyarrow as pa

from ray_jobs.engine_metrics import EngineMetrics, MeteredEngine, MeteredPool
from ray_jobs.work import Block, EngineName, Kind
from rbft import attempts, rows
from rbft.config import ModelConfig, RunConfig
from rbft.cores import claim_cores
from rbft.engines.base import Engine
from rbft.errors import EngineCrashError, EngineGoneError
from rbft.evaluation.looking.masking import Masker
from rbft.evaluation.looking.sources import make_source
from rbft.evaluation.predictions import predictions_table
from rbft.evaluation.scorer import Scorer
from rbft.log_fields import add_fields
from rbft.model_store import on_this_node
from rbft.rationales.table import rationales_table
from rbft.rationales.worker import RationaleWorker
from rbft.records import Example, Prediction, Rationale
from rbft.video.budget import FrameBudget

MAX_DEATHS_ALONE = 2
"""Engines that may die with one video alone in them before it becomes an error row."""
MAX_DEATHS_AT_START = 5
"""Times suspects may be begun without anything having come of it: then it is not the videos that kill engines."""


class EngineActor:
    """Runs in the actor's event loop, and touches the store in threads beside it: one that is slow must not leave the engine short."""

    def __init__(self, config: RunConfig, engine: EngineName) -> None:
        add_fields(run=config.name)
        self._config = config
        self._engine_name = engine
        self._engine: Engine | None = None
        self._model: ModelConfig | None = None
        self._inside: list[Block] = []
        """The blocks whose videos may be in the engine."""
        self._is_reserved = False
        self._changed = asyncio.Condition()
        if config.engine.pin_cores and not claim_cores(int(config.engine.num_cpus)):  # before anything is started that shall keep to them
            print(f"not pinned: no {config.engine.num_cpus:g} cores are free", flush=True)
        video = config.video
        self._budget = FrameBudget(2 * config.engine.max_num_seqs, config.engine.max_frame_bytes)
        self._metrics = EngineMetrics(config.name, self._budget)
        self._pool = MeteredPool(self._metrics, config.engine.decode_workers, video.timeout_s, video.memory_limit_bytes)

    async def __call__(self, batch: pa.Table) -> AsyncIterator[dict[str, list[int]]]:
        for row in batch.to_pylist():
            block = Block.loads(row["block"])
            before = await asyncio.to_thread(attempts.look, block.folder, "block", block.ids, block.job)
            is_suspect = block.is_suspect or before.is_suspect
            if is_suspect:
                self._metrics.count_suspects()
            asked = self._ask_alone(block) if is_suspect else self._ask_together(block)
            num_errors = 0
            async for table in asked:
                await asyncio.to_thread(rows.write_part, block.folder, table)
                self._metrics.count_rows(block.kind, table)
                num_errors += table.num_rows - table["error_code"].null_count
            await asyncio.to_thread(attempts.end, block.folder, "block", block.ids)
            yield {"num_rows": [len(block.examples)], "num_errors": [num_errors]}

    async def _ask_together(self, block: Block) -> AsyncIterator[pa.Table]:
        async with self._use_engine(block, alone=False) as engine:
            ask = self._asker(engine, block)
            answers = await asyncio.gather(*(ask(example) for example in block.examples))
        yield _table(block, answers)

    async def _ask_alone(self, block: Block) -> AsyncIterator[pa.Table]:
        """A part of its own for every video; what an earlier attempt has written is not asked again."""
        async with self._use_engine(block, alone=True) as engine:
            await asyncio.to_thread(attempts.progressed, block.folder, "block", block.ids, block.job)
            ask = self._asker(engine, block)
            for example in block.examples:
                if await asyncio.to_thread(rows.has_part, block.folder, [example.id]):
                    continue
                before = await asyncio.to_thread(attempts.look, block.folder, "alone", [example.id], block.job)
                if before.attempts >= MAX_DEATHS_ALONE:
                    answer = _guilty(block.kind, example, before.attempts)
                else:
                    await asyncio.to_thread(attempts.begin, block.folder, "alone", [example.id], block.job)
                    answer = await ask(example)
                yield _table(block, [answer])
                await asyncio.to_thread(attempts.end, block.folder, "alone", [example.id])

    def _asker(self, engine: Engine, block: Block) -> Any:
        """Example -> awaitable row."""
        config, spec = self._config, self._config.video.spec()
        if block.kind == "rationale":
            return RationaleWorker(
                *(engine, self._pool, block.task, spec, config.generation, block.gates),
                seed=config.seed,
                provenance=block.provenance,
                budget=self._budget,
            ).write
        masking = config.evaluation.masking
        return Scorer(
            *(engine, self._pool, block.task, spec),
            max_new_tokens=config.evaluation.max_new_tokens,
            budget=self._budget,
            masker=Masker(make_source(masking), masking, block.mask) if block.mask else None,
        ).predict

    @asynccontextmanager
    async def _use_engine(self, block: Block, *, alone: bool) -> AsyncIterator[Engine]:
        """The engine for the block's model: the one at hand, or a new one in its place once nobody uses that. With `alone`, for nobody
        else meanwhile. If it dies in use, so does this process."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._may_enter(block.model, alone))
            # Not before its turn: suspects wait for one another, and what dies meanwhile says nothing about those that wait.
            before = await asyncio.to_thread(attempts.begin, block.folder, "block", block.ids, block.job)
            if alone and before.attempts >= MAX_DEATHS_AT_START:
                raise EngineGoneError(f"{block.model.path}: its engine's process dies each time as it starts; see Ray's log of the actor")
            if self._engine is None or self._model != block.model:
                # Never other weights in a running engine: its caches would answer for the old ones.
                if self._engine is not None:
                    self._engine.close()
                    self._engine = None
                self._engine, self._model = self._start(block.model), block.model
            self._inside.append(block)
            self._is_reserved = alone
        try:
            # A server's retries take their time, and it is not ours to replace.
            timeout_s = None if self._engine_name == "openai" else self._config.engine.request_timeout_s
            yield MeteredEngine(self._engine, self._metrics, timeout_s)
        except EngineGoneError as error:
            # An actor with a dead engine would fail every block it is given; Ray starts another in its place, and tries them again.
            for each in self._inside:
                attempts.blame(each.folder, "block", each.ids, each.job)
            print(f"engine gone, actor exits: {error}", flush=True)
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):  # it may be ending by itself
                    child.kill()  # one that hangs does not notice that its parent is gone
            os._exit(1)
        finally:
            async with self._changed:
                self._inside.remove(block)
                self._is_reserved = False
                self._changed.notify_all()

    def _may_enter(self, model: ModelConfig, alone: bool) -> bool:
        return not self._inside or not (alone or self._is_reserved or self._model != model)

    def _start(self, model: ModelConfig) -> Engine:
        return start_engine(self._config, self._engine_name, model)


def start_engine(config: RunConfig, name: EngineName, model: ModelConfig) -> Engine:
    """The engine called `name` with `model` in it, in this process or below it; within a running event loop, as vLLM needs one."""
    spec = config.video.spec()
    if name == "hf":
        from rbft.engines.hf import HFEngine

        return HFEngine(on_this_node(model), spec, max_batch_size=config.engine.max_num_seqs)
    if name == "openai":
        from rbft.engines.openai import OpenAIEngine

        assert config.teacher.server is not None
        return OpenAIEngine(config.teacher.server)
    from rbft.engines.vllm import VllmEngine

    return VllmEngine(on_this_node(model), config.engine, spec, config.seed)


def _guilty(kind: Kind, example: Example, num_deaths: int) -> Rationale | Prediction:
    error = EngineCrashError(f"{example.uri}: the engine died {num_deaths} times with this video alone in it; leave it out or re-encode it")
    if kind == "rationale":
        return Rationale(example.id, 0, error_code=error.code, error_message=str(error))
    return Prediction(example.id, example.label, None, error_code=error.code, error_message=str(error))


def _table(block: Block, answers: Sequence[Any]) -> pa.Table:
    return rationales_table(answers) if block.kind == "rationale" else predictions_table(answers, masked=block.mask is not None)
