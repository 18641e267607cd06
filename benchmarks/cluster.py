"""How generation scales over nodes, and how soon work goes on after a failure (`benchmarks.recovery`). `python -m benchmarks cluster
[--json PATH]`

Nodes are raylets on this machine, each with room for one actor (four each for sixteen). An actor's engine only sleeps, as long as a real
one would take and for as many requests at a time, and costs no processor: what is lost is lost to dispatch, bookkeeping and Ray.
On two cores sixteen such actors show what the driver can hand out and take in, and nothing about sixteen GPUs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.recovery import FAILURES
from benchmarks.sleeping_job import AT_A_TIME, BLOCK, ROOT, SLEEP_S, BusyEngine, Job, nodes, run_config
from ray_jobs.run import versions
from rbft.engines.base import Sampling
from rbft.records import Clip

RESULT = ROOT / "benchmarks/results/cluster.md"
ACTORS = (1, 2, 4, 16)
MAX_NODES = 4
BLOCKS_AN_ACTOR = 45
WINDOW = (0.2, 0.9)
"""The share of the rows between which the rate is taken: not while actors start, nor while the last blocks end."""

Measured = dict[str, Any]


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster")
    parser.add_argument("--actors", type=int, nargs="+", default=list(ACTORS), metavar="N", help="numbers of actors")
    parser.add_argument("--blocks", type=int, default=BLOCKS_AN_ACTOR, metavar="N", help="blocks of work an actor")
    parser.add_argument("--failures", nargs="+", default=list(FAILURES), choices=list(FAILURES), metavar="NAME", help="to recover from")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the figures too")
    chosen = parser.parse_args(arguments)
    bare_per_s = asyncio.run(bare_rate(chosen.blocks * BLOCK))
    measured = {}
    for num_actors in chosen.actors:
        measured[num_actors] = measure(num_actors, chosen.blocks)
        print(f"{num_actors} actors: {measured[num_actors]['rows_per_s']:.1f} rows/s; one bare engine: {bare_per_s:.1f}", flush=True)
    recovery_s: dict[str, float | None] = {}
    for failure in chosen.failures:
        recovery_s[failure] = FAILURES[failure]()
        print(f"{failure}: at work again after {_seconds(recovery_s[failure])}", flush=True)
    found = as_json(measured, bare_per_s, recovery_s)
    print(table(found))
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n")
    if (chosen.actors, chosen.blocks, chosen.failures) == (list(ACTORS), BLOCKS_AN_ACTOR, list(FAILURES)):
        RESULT.write_text(page(found))
        print(f"wrote {RESULT.relative_to(ROOT)}")


# Generation


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


# What comes out


def as_json(measured: dict[int, Measured], bare_per_s: float, recovery_s: dict[str, float | None]) -> Measured:
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
    lines += [f"| {name} | {_seconds(seconds)} |" for name, seconds in found["recovery_s"].items()]
    return "\n".join(lines)


def _seconds(seconds: float | None) -> str:
    return "not measured: only root can cut a link" if seconds is None else f"{seconds:.1f} s"


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

Generation is of engines that sleep: the start of an engine is to be added. A node that dies in generation is replaced by another while
the job goes on, and the time is until an actor begins there. In training it is the node of the only worker, beside another; the time is
until an optimiser step is new, with the start of Python, DeepSpeed and the model in it. Under serving it has one of two replicas; the time
is until the first of twenty answers in a row. The link to one of two nodes is cut for longer than Ray's patience, a good minute: the other goes
on meanwhile, and the time is from the link's return until an actor begins on the node, which has left by itself and been started again. A
driver is killed and submitted again; with the head go the job and its node with room for two actors, or its two nodes with room for one
each, and all of them are started again, one after the other on this one machine: elsewhere nodes start side by side. The time is until a
row is new.
"""


if __name__ == "__main__":
    main(sys.argv[1:])
