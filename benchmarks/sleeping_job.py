"""A generation job whose engines only sleep, as a process of its own on a cluster of this machine.

An engine takes as many requests at a time as a real one would, each as long, and costs no processor: what is lost or late is dispatch,
bookkeeping and Ray. `python -m benchmarks.sleeping_job FOLDER ACTORS BLOCKS [CPUS]` on the cluster of RAY_ADDRESS.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.scale import SleepingActor, SleepingEngine
from miniature.local_cluster import LocalCluster
from ray_jobs.inference import run_inference
from ray_jobs.progress import Progress
from ray_jobs.ray_runtime import ensure_ray
from ray_jobs.work import Work
from rbft import rows
from rbft.config import ModelConfig, RunConfig, load_config
from rbft.engines.base import Generated, Sampling
from rbft.records import Clip, Example, rationale_schema
from rbft.task import Message

ROOT = Path(__file__).resolve().parent.parent
AT_A_TIME = 16
"""Requests in an engine."""
SLEEP_S = (0.5, 1.5)
"""What one takes, drawn evenly: a second in the mean, so that an engine answers `AT_A_TIME` a second."""
BLOCK = 16

Said = dict[str, Any]
"""`done`: rows that there are; `at`: when, in seconds since 1970."""


class BusyEngine(SleepingEngine):
    """Takes `AT_A_TIME` requests at a time, each for a while."""

    def __init__(self, headings: Sequence[str]) -> None:
        super().__init__(headings)
        self._room = asyncio.Semaphore(AT_A_TIME)
        self._draw = random.Random(os.getpid())

    async def generate(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> Generated:
        async with self._room:
            await asyncio.sleep(self._draw.uniform(*SLEEP_S))
            return await super().generate(clip, messages, sampling)


class BusyActor(SleepingActor):
    """The job's actor, which also writes down when its engine begins: an empty file beside the rows."""

    def _start(self, model: ModelConfig) -> BusyEngine:
        (Path(self._config.output_dir) / f"began-{time.time():.3f}-{os.getpid()}").touch()
        return BusyEngine([dimension.heading for dimension in self._config.task.dimensions])


def run_config(folder: str, num_actors: int) -> RunConfig:
    settings = (f"engine.num_actors={num_actors}", "engine.num_cpus=1", f"engine.max_num_seqs={AT_A_TIME}")
    return load_config(ROOT / "configs/miniature.yaml", [*settings, f"engine.rows_per_block={BLOCK}", f"output_dir={folder}"])


def job(folder: str, num_actors: int, num_blocks: int, cpus_there: float = 0) -> None:
    """Rationales of so many blocks, once the cluster has `cpus_there`; those that are there already are not asked for again."""
    import ray

    ensure_ray()
    while ray.cluster_resources().get("CPU", 0) < cpus_there:
        time.sleep(0.2)
    config = run_config(folder, num_actors)
    examples = [Example(f"clip-{n:06d}", f"s3://videos/clip-{n:06d}.mp4") for n in range(num_blocks * BLOCK)]
    done = rows.done_ids(folder, rationale_schema())
    pending = [example for example in examples if example.id not in done]
    work = Work("rationale", folder, pending, config.model, config.task, {"model": "sleeps"}, config.gates)
    run_inference(config, "vllm", [work], _Said(len(done)), actor_class=BusyActor)
    found = rows.read_parts(folder, rationale_schema())["id"].to_pylist()
    if sorted(found) != [example.id for example in examples]:
        raise SystemExit(f"{len(found)} rows, {len(set(found))} ids; every id must have exactly one row")


class _Said(Progress):
    """Progress for who started this process: how many rows there are, and when."""

    def __init__(self, done: int) -> None:
        self._done = done

    def add(self, num_done: int, num_errors: int = 0) -> None:
        self._done += num_done
        print(json.dumps({"done": self._done, "at": time.time()}), flush=True)


class Job:
    """A job on the cluster that it is given; a context manager that ends it."""

    def __init__(self, cluster: LocalCluster, folder: str, num_actors: int, num_blocks: int) -> None:
        words = [sys.executable, "-m", "benchmarks.sleeping_job", folder, *map(str, (num_actors, num_blocks, num_actors))]
        self._process = subprocess.Popen(words, cwd=ROOT, env=cluster.environment, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def said(self) -> Iterator[Said]:
        """What it says, until it ends. Raises `SystemExit` if it fails."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        if self._process.wait():
            raise SystemExit(f"the job ended with {self._process.returncode}")


@contextmanager
def nodes(cpus: Sequence[int]) -> Iterator[LocalCluster]:
    """A head that takes no actors, and a node for each of `cpus`. Workers import this module, which no package of the environment holds."""
    with tempfile.TemporaryDirectory(prefix="rbft") as folder:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with LocalCluster(Path(folder), more={"PYTHONPATH": path}) as cluster:
            for num_cpus in cpus:
                cluster.add_node(num_cpus)
            yield cluster


if __name__ == "__main__":
    job(sys.argv[1], *map(int, sys.argv[2:]))
