"""How generation's bookkeeping grows with the number of videos: the job's own plan, actors, notes, parts and joined files, with an engine
that only sleeps. `python -m benchmarks.scale [--sizes 10000 100000] [--json PATH]`

For each size: a job that is killed (SIGKILL to its driver) when half of the videos have a row, and the same job again, to the end. Then
every id must have come out exactly once. Nothing is decoded; the manifest, the blocks, Ray Data, the rationale worker and the rows on
disk are the real ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from ray_jobs.engine_actor import EngineActor
from ray_jobs.inference import blocks_at_a_time, run_inference
from ray_jobs.progress import Progress
from ray_jobs.run import versions
from ray_jobs.work import EngineName, Work
from rbft import rows
from rbft.config import ModelConfig, RunConfig, load_config
from rbft.data.manifest import read_manifest, write_manifest
from rbft.engines.base import Answer, Generated, Sampling
from rbft.evaluation.tables import duration
from rbft.records import Clip, Example, rationale_schema
from rbft.task import Message

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/scale.md"
SIZES = (10_000, 100_000, 1_000_000)
SLEEP_S = 0.02
"""What the engine takes for an answer."""
SETTINGS = ("engine.num_actors=3", "engine.num_cpus=0.5", "engine.max_num_seqs=64", "engine.rows_per_block=256")
_SAY_EVERY_S = 0.2

Measured = dict[str, Any]


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), metavar="N", help="numbers of videos")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the figures too")
    chosen = parser.parse_args(arguments)
    measured = [measure(size) for size in chosen.sizes]
    print(table(measured))
    if chosen.json:
        chosen.json.write_text(json.dumps(as_json(measured), indent=2) + "\n")
    if chosen.sizes == list(SIZES):
        RESULT.write_text(page("python -m benchmarks scale", measured))
        print(f"wrote {RESULT.relative_to(ROOT)}")


def measure(size: int) -> Measured:
    """One size: half of it, SIGKILL, the rest, and whether all ids are there."""
    with tempfile.TemporaryDirectory(prefix="rbft-bench-") as folder:
        examples = [Example(f"clip-{n:08d}", f"s3://videos/{n // 1000:05d}/clip-{n:08d}.mp4", sha256=f"{n:064x}") for n in range(size)]
        write_manifest(examples, f"{folder}/manifest.parquet")
        killed = _Job(folder)
        last = killed.follow(until_done=size // 2)
        files_while_running = _num_files(folder)
        killed.kill()
        again = _Job(folder)
        end = again.follow()
        written = [
            id_ for table in rows.iterate_finished(folder, "rationales", rationale_schema(), ["id"]) for id_ in table["id"].to_pylist()
        ]
        if written != [example.id for example in examples]:
            raise SystemExit(f"{size} videos: {len(written)} rows, {len(set(written))} ids; every id must have exactly one row, in order")
        began = [job.began for job in (killed, again)]
        return {
            "rows": size,
            "rows_at_kill": last["done"],
            "rows_per_s": sum(job.rows_between for job in (killed, again)) / sum(job.seconds_between for job in (killed, again)),
            "first_row_s": killed.first_s - began[0],
            "resume_first_row_s": again.first_s - began[1],
            "resume_end_s": end["at"] - began[1],
            "seconds": {name: end[f"{name}_s"] for name in _PHASES},
            "driver_rss_bytes": max(end["peak_bytes"].values()),
            "driver_rss_bytes_by_phase": end["peak_bytes"],
            "files_while_running": max(files_while_running, end["files_before"]),
            "files": _num_files(folder),
            "bytes": sum(path.stat().st_size for path in Path(folder).glob("rationales-*")),
        }


_PHASES = {
    "manifest": "reading the manifest",
    "done_ids": "finding out what is done",
    "inference": "starting Ray, and the rest of the videos",
    "join": "joining the parts",
}
"""Of the second job, and what they are called."""


class _Job:
    """A job in a process of its own, as a user would start it; it says in JSON lines how far it is."""

    def __init__(self, folder: str) -> None:
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scale", "--job", folder], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        self.first_s = 0.0
        self.rows_between = 0
        self.seconds_between = 0.0

    def follow(self, until_done: int | None = None) -> Measured:
        """What it said last: when `until_done` rows are written, else at its end."""
        assert self._process.stdout is not None
        said: Measured = {}
        first: Measured = {}
        for line in self._process.stdout:
            if not line.startswith("{"):
                continue
            said = json.loads(line)
            if "done" not in said:
                continue
            first = first or said
            self.first_s = first["at"]
            self.rows_between, self.seconds_between = said["done"] - first["done"], said["at"] - first["at"]
            if until_done is not None and said["done"] >= until_done:
                return said
        if self._process.wait() or until_done is not None:
            raise SystemExit(f"the job ended with {self._process.returncode} after {said}")
        return said

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


class _Said(Progress):
    """Progress for who started this process."""

    def __init__(self, done: int) -> None:
        self._done = done
        self._at = 0.0

    def add(self, num_done: int, num_errors: int = 0) -> None:
        self._done += num_done
        if time.monotonic() - self._at > _SAY_EVERY_S:
            self._at = time.monotonic()
            print(json.dumps({"done": self._done, "at": self._at}), flush=True)


def job(folder: str) -> None:
    """What `ray_jobs/generate.py` does, timed: the manifest, what is done already, the rest, the end."""
    config = scale_config()
    times, peaks = [time.monotonic()], {}

    def ended(phase: str) -> None:
        times.append(time.monotonic())
        peaks[phase] = _peak_bytes()

    examples = read_manifest(f"{folder}/manifest.parquet")
    ended("manifest")
    done = rows.done_ids(folder, rationale_schema())
    pending = [example for example in examples if example.id not in done]
    ended("done_ids")
    said = _Said(len(done))
    work = Work("rationale", folder, pending, config.model, config.task, {"model": "sleeps"}, config.gates)
    run_inference(config, "vllm", [work], said, actor_class=SleepingActor)
    ended("inference")
    files_before = _num_files(folder)
    rows.finish(folder, "rationales", rationale_schema(), (example.id for example in examples), "f" * 16, {})
    ended("join")
    seconds = {f"{phase}_s": end - begin for phase, begin, end in zip(_PHASES, times, times[1:], strict=False)}
    print(json.dumps({"at": times[-1], "peak_bytes": peaks, "files_before": files_before} | seconds), flush=True)


def scale_config() -> RunConfig:
    return load_config(ROOT / "configs/miniature.yaml", SETTINGS)


def ceiling_rows_per_s(config: RunConfig) -> float:
    """What the sleeping engines could answer if nothing else took time."""
    return config.engine.num_actors * 2 * config.engine.max_num_seqs / SLEEP_S


class SleepingActor(EngineActor):
    """The job's actor with nothing to decode and an engine that sleeps."""

    def __init__(self, config: RunConfig, engine: EngineName) -> None:
        super().__init__(config, engine)
        self._pool = _NothingToDecode()  # type: ignore[assignment]

    def _start(self, model: ModelConfig) -> SleepingEngine:
        return SleepingEngine([dimension.heading for dimension in self._config.task.dimensions])


class _NothingToDecode:
    """In place of a `DecodePool`."""

    _CLIP = Clip(np.zeros((4, 28, 28, 3), np.uint8), (0.0, 1.0, 2.0, 3.0), 1.0, 4.0, 30.0, "pyav")

    async def decode_async(self, *_: Any) -> Clip:
        return self._CLIP


class SleepingEngine:
    """An `Engine` that answers each request after `SLEEP_S` with 1.9 kB of text under the task's headings, drawn with its seed."""

    def __init__(self, headings: Sequence[str]) -> None:
        self._headings = headings
        draw = random.Random(0)
        self._sentences = [" ".join("".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 8))) for _ in range(18)) for _ in range(500)]

    async def generate(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> Generated:
        await asyncio.sleep(SLEEP_S)
        draw = random.Random(sampling.seed)
        text = "\n".join(f"{heading}: {'. '.join(draw.choices(self._sentences, k=4))}." for heading in self._headings)
        return Generated(text, 500, 300, "stop")

    async def score(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str]) -> dict[str, float]:
        raise NotImplementedError

    async def answer(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str], max_new_tokens: int) -> Answer:
        raise NotImplementedError

    async def check_health(self) -> None:
        return

    def close(self) -> None:
        return


def _peak_bytes() -> int:
    """Peak resident memory of this process since this was last asked, shared pages (of Ray's object store) included. Linux."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    Path("/proc/self/clear_refs").write_text("5")
    return int(status["VmHWM"].split()[0]) * 1024


def _num_files(folder: str) -> int:
    """Files of the bookkeeping in `folder`: all but the manifest."""
    return sum(path.is_file() for path in Path(folder).rglob("*")) - 1


def as_json(measured: Sequence[Measured]) -> Measured:
    sizes = {str(each["rows"]): each for each in measured}
    return {name: {size: each[name] for size, each in sizes.items()} for name in ("rows_per_s", "driver_rss_bytes")} | {"sizes": sizes}


def table(measured: Sequence[Measured]) -> str:
    """The figures as a Markdown table, a column a size."""
    mib = 2**20
    lines: dict[str, Callable[[Measured], str]] = {
        "rows/s": lambda m: f"{m['rows_per_s']:,.0f}",
        "driver memory, peak": lambda m: f"{m['driver_rss_bytes'] / mib:,.0f} MiB",
        **{f"· {told}": partial(_phase, phase) for phase, told in _PHASES.items()},
        "files while it runs": lambda m: f"{m['files_while_running']:,}",
        "files at the end": lambda m: f"{m['files']:,}, {m['bytes'] / mib:,.0f} MiB",
        "first submission: first new rows after": lambda m: f"{m['first_row_s']:.1f} s",
        "killed at": lambda m: f"{m['rows_at_kill']:,} rows",
        "second submission: first new rows after": lambda m: f"{m['resume_first_row_s']:.1f} s",
        "second submission: end after": lambda m: duration(m["resume_end_s"]),
    }
    head = "| | " + " | ".join(f"{m['rows']:,} videos" for m in measured) + " |"
    body = [f"| {name} | {' | '.join(say(m) for m in measured)} |" for name, say in lines.items()]
    return "\n".join([head, "| --- |" + " ---: |" * len(measured), *body])


def _phase(phase: str, measured: Measured) -> str:
    return f"{measured['driver_rss_bytes_by_phase'][phase] / 2**20:,.0f} MiB, {measured['seconds'][phase]:.1f} s"


def page(command: str, measured: Sequence[Measured]) -> str:
    config = scale_config()
    named = ", ".join(f"{package} {version}" for package, version in versions().items() if package in ("python", "rbft", "ray", "pyarrow"))
    engine = config.engine
    return f"""# How generation's bookkeeping grows with the number of videos

`{command}`, {time.strftime("%Y-%m-%d")}, on {describe_machine()}. {named}.

The job's plan with {engine.num_actors} actors whose engines only sleep, {SLEEP_S * 1000:.0f} ms a request: they could answer
{ceiling_rows_per_s(config):,.0f} videos/s. {engine.rows_per_block} videos a block, {blocks_at_a_time(engine)} blocks at a time in an actor.
Driver and actors share the machine's cores. The driver is killed when half of the videos have a row, and the job is submitted again; memory
and seconds by phase are those of the second job. Every id then had exactly one row.

{table(measured)}
"""


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        job(sys.argv[2])
    else:
        main(sys.argv[1:])
