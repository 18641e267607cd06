"""Videos through engines: a Ray Data plan over a pool of actors, each of which owns an engine and decodes beside it.

    work (videos, what to ask, where rows go) -> blocks -> actors -> parts on disk -> one summary row a block back to the driver

What is on disk is what is done (`rbft.rows`). So a killed actor costs its blocks, a killed driver the blocks under way, and submitting
again asks only for ids that have no row.
"""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Iterator, Sequence

import pyarrow as pa

from ray_jobs.engine_actor import EngineActor
from ray_jobs.job_metrics import RemainingVideos
from ray_jobs.progress import Progress
from ray_jobs.ray_runtime import ensure_ray, free_resources, reason
from ray_jobs.waiting import Waiting, resources
from ray_jobs.work import Block, EngineName, Work
from rbft import attempts, storage
from rbft.config import EngineConfig, RunConfig
from rbft.errors import JobError

SEEN_WITHIN_S = 90.0
"""How long a shared disk may take to show a file that another node has written: NFS clients keep lists of files for a minute."""


def run_inference(
    config: RunConfig,
    engine: EngineName,
    work: Sequence[Work],
    progress: Progress | None = None,
    actor_class: type[EngineActor] = EngineActor,
) -> float:
    """Do all of `work`, and tell `progress` as blocks end. `config` says how: engine, frames, sampling, seed.

    An actor loads a model when a block asks for another than it has, so work should be ordered by model.
    Comes back with the seconds until the first block was done, which are mostly the start of Ray and engines.
    Raises `JobError` if an engine cannot be started, a store cannot be written, or the nodes do not see the same disk.
    """
    import ray
    from ray.data import ActorPoolStrategy
    from ray.util.annotations import RayDeprecationWarning

    job = uuid.uuid4().hex
    # One row a block: Ray Data moves descriptions of work; frames never leave the actor.
    blocks = [pa.table({"block": [block.dumps()]}) for item in work for block in _blocks(item, config.engine.rows_per_block, job)]
    if not blocks:
        return 0.0
    started, first_block_s = time.monotonic(), 0.0
    ensure_ray()
    # Not `from_arrow`, which starts a task for each to look at it, nor `repartition`, whose tasks wait for a CPU that actors hold.
    dataset = ray.data.from_blocks(blocks)
    at_a_time = blocks_at_a_time(config.engine)
    most = min(config.engine.num_actors, len(blocks))
    pool = ActorPoolStrategy(
        min_size=min(config.engine.min_actors or most, most),
        max_size=most,
        max_tasks_in_flight_per_actor=at_a_time,
        # Without this they would wait in the actor, one after the other.
        max_concurrent_calls_per_actor=at_a_time,
    )
    del blocks
    with warnings.catch_warnings():
        # Ray 2.60 calls these two deprecated, names no successor, and retries for ever without them.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        results = dataset.map_batches(
            actor_class,
            fn_constructor_args=(config, engine),
            batch_size=1,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=config.engine.num_cpus,
            num_gpus=0 if engine == "openai" else config.engine.num_gpus,
            resources=config.engine.resources,
            # Without end: the notes on attempts bound what a video or an engine can kill, and a node may be taken away any number of times.
            max_restarts=-1,
            max_task_retries=-1,
        )
    also = config.engine.resources
    actor = {"CPU": config.engine.num_cpus, "GPU": 0 if engine == "openai" else config.engine.num_gpus, **also}
    needs = f"{most} actors of {resources(actor, also)}, or some of them"
    try:
        remaining = RemainingVideos(config.name, sum(len(item.examples) for item in work))
        with Waiting("engines", needs, free_resources, also) as waiting:
            # Not `iter_rows`, which tells of a block when it has the next.
            for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                waiting.progressed()
                if not first_block_s:
                    first_block_s = time.monotonic() - started
                    require_shared([item.folder for item in work])
                remaining.done(sum(batch["num_rows"].to_pylist()))
                if progress is not None:
                    progress.add(sum(batch["num_rows"].to_pylist()), sum(batch["num_errors"].to_pylist()))
    except ray.exceptions.RayError as error:
        raise JobError(f"inference stopped: {reason(error)}; what was done is kept, submit the job again to go on") from error
    return first_block_s


def require_shared(folders: Sequence[str], patience_s: float = SEEN_WITHIN_S) -> None:
    """Raise `JobError` if none of `folders` has a row, though some actor has written one: it wrote to a disk of its own."""
    local = [folder for folder in folders if "://" not in folder]
    deadline = time.monotonic() + patience_s
    while len(local) == len(folders) and not any(storage.list_files(f"{folder}/parts") for folder in local):
        if time.monotonic() > deadline:
            raise JobError(
                f"{local[0]}: rows that another node has written are not seen here; give an output_dir on a disk that all nodes share, "
                "or in a store (s3://…)"
            )
        time.sleep(1)


def blocks_at_a_time(engine: EngineConfig) -> int:
    """How many blocks an actor works on: those that hold twice `max_num_seqs` videos, which is what it keeps in flight, and one more, so
    that the last videos of a block never leave its engine short."""
    return -(-2 * engine.max_num_seqs // engine.rows_per_block) + 1


def _blocks(work: Work, rows_per_block: int, job: str) -> Iterator[Block]:
    """The videos of `work` in blocks; those that an engine died with when an earlier job asked come last, in blocks of their own."""
    suspects = attempts.suspects(work.folder)
    for is_suspect in (False, True):
        examples = [example for example in work.examples if (example.id in suspects) == is_suspect]
        for start in range(0, len(examples), rows_per_block):
            chosen = examples[start : start + rows_per_block]
            yield Block(work.kind, work.folder, chosen, work.model, work.task, work.provenance, work.gates, job, is_suspect, mask=work.mask)
