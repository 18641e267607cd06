"""How generation scales over nodes, and how soon a job is at work again after a failure. `python -m benchmarks cluster [--json PATH]`

Nodes are raylets on this machine, each with room for one actor (four each for sixteen). An actor's engine only sleeps, as long as a real
one would take and for as many requests at a time, and costs no processor: what is lost is lost to dispatch, bookkeeping and Ray.
On two cores sixteen such actors show what the driver can hand out and take in, and nothing about sixteen GPUs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.scale import SleepingActor, SleepingEngine
from miniature.local_cluster import LocalCluster
from ray_jobs.inference import run_inference
from ray_jobs.progress import Progress
from ray_jobs.ray_runtime import ensure_ray
from ray_jobs.run import versions
from ray_jobs.work import Work
from rbft import rows
from rbft.config import ModelConfig, RunConfig, load_config
from rbft.engines.base import Generated, Sampling
from rbft.records import Clip, Example, rationale_schema
from rbft.task import Message

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/cluster.md"
ACTORS = (1, 2, 4, 16)
MAX_NODES = 4
AT_A_TIME = 16
"""Requests in an engine."""
SLEEP_S = (0.5, 1.5)
"""What one takes, drawn evenly: a second in the mean, so that an engine answers `AT_A_TIME` a second."""
BLOCK = 16
BLOCKS_AN_ACTOR = 45
WINDOW = (0.2, 0.9)
"""The share of the rows between which the rate is taken: not while actors start, nor while the last blocks end."""

Measured = dict[str, Any]


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster")
    parser.add_argument("--actors", type=int, nargs="+", default=list(ACTORS), metavar="N", help="numbers of actors")
    parser.add_argument("--blocks", type=int, default=BLOCKS_AN_ACTOR, metavar="N", help="blocks of work an actor")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the figures too")
    chosen = parser.parse_args(arguments)
    bare_per_s = asyncio.run(bare_rate(chosen.blocks * BLOCK))
    measured = {}
    for num_actors in chosen.actors:
        measured[num_actors] = measure(num_actors, chosen.blocks)
        print(f"{num_actors} actors: {measured[num_actors]['rows_per_s']:.1f} rows/s; one bare engine: {bare_per_s:.1f}", flush=True)
    recovery_s = {name: time_it() for name, time_it in FAILURES.items()}
    found = as_json(measured, bare_per_s, recovery_s)
    print(table(found))
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n")
    if chosen.actors == list(ACTORS) and chosen.blocks == BLOCKS_AN_ACTOR:
        RESULT.write_text(page(found))
        print(f"wrote {RESULT.relative_to(ROOT)}")


# Engines that cost nothing


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


async def bare_rate(num_requests: int) -> float:
    """Requests a second of one engine with nothing around it, where twice as many wait as it takes."""
    task = run_config("runs", 1).task
    engine = BusyEngine([dimension.heading for dimension in task.dimensions])
    clip, messages = Clip(np.zeros((4, 28, 28, 3), np.uint8), (0.0, 1.0, 2.0, 3.0), 1.0, 4.0, 30.0, "pyav"), task.rationale_messages()
    waiting = asyncio.Semaphore(2 * AT_A_TIME)

    async def ask(number: int) -> float:
        async with waiting:
            await engine.generate(clip, messages, Sampling(80, seed=number))
            return time.monotonic()

    ended = sorted(await asyncio.gather(*(ask(number) for number in range(num_requests))))
    first, last = (int(share * num_requests) for share in WINDOW)
    return (last - first) / (ended[last] - ended[first])


# The job: a process of its own, as a user would start it


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
        words = [sys.executable, "-m", "benchmarks.cluster", "--job", folder, *map(str, (num_actors, num_blocks, num_actors))]
        self._process = subprocess.Popen(words, cwd=ROOT, env=cluster.environment, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def said(self) -> Iterator[Measured]:
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


def measure(num_actors: int, blocks_an_actor: int) -> Measured:
    """Rows a second of so many actors, each with so much work."""
    num_nodes = min(num_actors, MAX_NODES)
    total = num_actors * blocks_an_actor * BLOCK
    with tempfile.TemporaryDirectory(prefix="rbft-bench-") as folder, nodes([num_actors // num_nodes] * num_nodes) as cluster:
        with Job(cluster, folder, num_actors, num_actors * blocks_an_actor) as job:
            said = list(job.said())
        began = sorted(float(path.name.split("-")[1]) for path in Path(folder).glob("began-*"))
    within = [each for each in said if WINDOW[0] * total <= each["done"] <= WINDOW[1] * total]
    rows_per_s = (within[-1]["done"] - within[0]["done"]) / (within[-1]["at"] - within[0]["at"])
    # With the start of the last actor and the end of the last block, which every engine but one waits for.
    with_ends_per_s = total / (said[-1]["at"] - began[-1])
    return {"rows_per_s": rows_per_s, "with_ends_per_s": with_ends_per_s, "nodes": num_nodes}


# Failures


def node_dies() -> float:
    """A node is killed and another joins: seconds until an actor on it begins. Its engine's start comes on top."""
    with tempfile.TemporaryDirectory(prefix="rbft-bench-") as folder, nodes([1, 1]) as cluster, Job(cluster, folder, 2, 120) as job:
        said = job.said()
        _ = [next(said) for _ in range(10)]
        killed = time.time()
        cluster.kill_node(cluster.nodes[0])
        cluster.add_node(1)
        last = list(said)[-1]
        began = [moment for path in Path(folder).glob("began-*") if (moment := float(path.name.split("-")[1])) > killed]
        assert last["done"] == 120 * BLOCK
        return min(began) - killed


def driver_dies() -> float:
    """The job's own process is killed and it is submitted again: seconds until a row is new. Ray and the nodes stay."""
    with nodes([1, 1]) as cluster:
        return _submitted_again(cluster, lambda: None)


def head_dies(cpus: Sequence[int] = (2,)) -> float:
    """The head is killed, and with it go the job and, without a Redis, the nodes, one for each of `cpus`. All are started, one after the
    other, and the job is submitted again: seconds until a row is new."""
    with nodes(cpus) as cluster:

        def lose_all() -> None:
            cluster.kill_head()
            for node in list(cluster.nodes):
                cluster.kill_node(node)
            cluster.start_head()
            for num_cpus in cpus:
                cluster.add_node(num_cpus)

        return _submitted_again(cluster, lose_all)


def _submitted_again(cluster: LocalCluster, fail: Callable[[], None]) -> float:
    """Seconds from the death of a job's process, `fail` included, to the first new row of its successor."""
    with tempfile.TemporaryDirectory(prefix="rbft-bench-") as folder:
        with Job(cluster, folder, 2, 60) as first:
            said = first.said()
            done = [next(said) for _ in range(10)][-1]["done"]
            first.kill()
            killed = time.time()
        fail()
        with Job(cluster, folder, 2, 60) as second:
            again = next(each for each in second.said() if each["done"] > done)
            return float(again["at"]) - killed


FAILURES: dict[str, Callable[[], float]] = {
    "node in generation": node_dies,
    "driver": driver_dies,
    "head": head_dies,
    "head, two nodes to start": partial(head_dies, (1, 1)),
}


# What comes out


def as_json(measured: dict[int, Measured], bare_per_s: float, recovery_s: dict[str, float]) -> Measured:
    one = measured[min(measured)]["rows_per_s"] / min(measured)
    return {
        "efficiency": {str(number): each["rows_per_s"] / number / one for number, each in measured.items()},
        "lost_to_ray": {str(number): 1 - each["rows_per_s"] / number / bare_per_s for number, each in measured.items()},
        "recovery_s": recovery_s,
        "bare_per_s": bare_per_s,
        "actors": {str(number): each for number, each in measured.items()},
    }


def table(found: Measured) -> str:
    """The figures as Markdown."""
    numbers = list(found["actors"])
    lines = [
        "| actors | nodes | rows/s | efficiency | lost against bare engines | rows/s with the ends |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for number in numbers:
        each = found["actors"][number]
        lines.append(
            f"| {number} | {each['nodes']} | {each['rows_per_s']:.1f} | {found['efficiency'][number]:.1%} | "
            f"{found['lost_to_ray'][number]:.1%} | {each['with_ends_per_s']:.1f} |"
        )
    lines += ["", "| what fails | at work again after |", "| --- | ---: |"]
    lines += [f"| {name} | {seconds:.1f} s |" for name, seconds in found["recovery_s"].items()]
    return "\n".join(lines)


def page(found: Measured) -> str:
    named = ", ".join(f"{package} {version}" for package, version in versions().items() if package in ("python", "rbft", "ray", "pyarrow"))
    return f"""# Generation over nodes, and after failures

`python -m benchmarks cluster`, {time.strftime("%Y-%m-%d")}, on {describe_machine()}. {named}.

Nodes are raylets on this one machine with room for one actor each, for sixteen actors with room for four. An engine takes {AT_A_TIME}
requests at a time, each for {SLEEP_S[0]} to {SLEEP_S[1]} s, and costs no processor; by itself it answers {found["bare_per_s"]:.1f} a
second. {BLOCK} videos a block, {BLOCKS_AN_ACTOR} blocks an actor. The rate is that between {WINDOW[0]:.0%} and {WINDOW[1]:.0%} of the
rows; "with the ends", from the moment the last actor began to the last row. Efficiency is against one actor of the same run, "lost"
against the engine with nothing around it. Sixteen actors on these cores show what a driver can hand out and take in, and nothing about
sixteen GPUs.

{table(found)}

Actors whose engines sleep: the start of an engine is to be added to each. A node that dies is replaced by another while the job goes on; a
driver is killed and submitted again; with the head go the job and its node with room for two actors, or its two nodes with room for one
each, and all of them are started again, one after the other on this one machine: elsewhere nodes start side by side. What is lost in
training and serving, and by a cut link, is held by tests (`tests/integration/test_nodes.py`, `test_links.py`, `test_serve_survives.py`).
"""


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        job(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main(sys.argv[1:])
