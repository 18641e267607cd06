"""Generation on real engines while they are killed: every video ends in exactly one row, and the guilty one in an error row."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from rbft.data.manifest import read_manifest, write_manifest
from tests.integration.conftest import NUM_TRAIN, TRAINING, Jobs, RayCluster, wait_for

pytestmark = pytest.mark.timeout(1500)


def rationales(run: Path) -> list[dict[str, Any]]:
    (table,) = run.glob("rationales/*/rationales-00000.parquet")
    return list(pq.read_table(table).to_pylist())


def train_ids(jobs: Jobs) -> list[str]:
    return [example.id for example in read_manifest(str(jobs.manifest)) if example.split == "train"]


def in_engine(run: Path, kind: str) -> list[dict[str, Any]]:
    """The notes on what is in engines now."""
    found = []
    for path in run.glob(f"rationales/*/attempts/{kind}-*.json"):
        try:
            found.append(json.loads(path.read_text()))
        except (OSError, ValueError):  # struck out this moment
            continue
    return found


def engine_cores(ray_cluster: RayCluster) -> list[psutil.Process]:
    """vLLM's engine processes below the cluster's head."""
    return [each for each in psutil.Process(ray_cluster.pid).children(recursive=True) if "EngineCore" in title(each)]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        return ""


class EngineKiller:
    """Plays a video that crashes engines: SIGKILL to the engine process whenever `video` is in it."""

    def __init__(self, ray_cluster: RayCluster, run: Path, video: str) -> None:
        self._cluster, self._run, self._video = ray_cluster, run, video
        self.num_killed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> EngineKiller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        done: set[tuple[str, int]] = set()
        while not self._stop.wait(0.005):
            for moment in self._moments() - done:
                done.add(moment)
                for core in engine_cores(self._cluster):
                    core.kill()
                    self.num_killed += 1

    def _moments(self) -> set[tuple[str, int]]:
        """(kind of note, attempts) of the notes that say the video is in an engine. A note outlives its engine: each counts once."""
        # A block is noted before its engine has started; it has when there are answers.
        is_up = any(self._run.glob("rationales/*/parts/*.parquet"))
        blocks = {("block", 1) for note in in_engine(self._run, "block") if is_up and self._video in note["ids"]}
        return blocks | {("alone", note["attempts"]) for note in in_engine(self._run, "alone") if note["ids"] == [self._video]}


@pytest.mark.slow
def test_a_video_that_kills_engines_becomes_an_error_row_and_no_other_is_lost(jobs: Jobs, ray_cluster: RayCluster) -> None:
    """The first death leaves its whole block suspect; alone in an engine it kills two more, and is found guilty."""
    run = jobs.run_dir("poison")
    ids = train_ids(jobs)
    guilty = ids[-3]
    with EngineKiller(ray_cluster, run, guilty) as killer:
        output = jobs.run("generate", "poison", "engine.max_num_seqs=1")  # so that there is time to kill
    rows = rationales(run)
    assert [row["id"] for row in rows] == ids
    assert {row["id"]: row["error_code"] for row in rows if row["error_code"]} == {guilty: "engine_crash"}
    assert killer.num_killed == 3 and f"engine_crash      1  {guilty}: " in output
    assert not list(run.glob("rationales/*/attempts")) and not (run / "lease.json").exists()


@pytest.mark.slow
def test_an_actor_that_is_killed_costs_nothing_but_time(jobs: Jobs, ray_cluster: RayCluster, finished_run: Path) -> None:
    run = jobs.run_dir("actor-killed")
    job = jobs.start("generate", "actor-killed", "engine.max_num_seqs=1", "engine.rows_per_block=8")  # so that there is time to kill
    wait_for(lambda: bool(list(run.glob("rationales/*/parts/*.parquet"))), job)
    (core, *_) = engine_cores(ray_cluster)
    actor = core.parent()
    assert actor is not None
    actor.kill()
    output, _ = job.communicate(timeout=900)
    assert job.returncode == 0, output
    assert [(row["id"], row["text"]) for row in rationales(run)] == [(row["id"], row["text"]) for row in rationales(finished_run)]


def test_a_second_submission_is_refused_while_the_first_runs(jobs: Jobs) -> None:
    run = jobs.run_dir("twice")
    first = jobs.start("generate", "twice")
    wait_for((run / "lease.json").exists, first)
    refused = jobs.run("generate", "twice", expect=2)
    assert "another job works there" in refused and str(first.pid) in refused
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    jobs.run("generate", "twice")
    assert len(rationales(run)) == NUM_TRAIN


def test_errors_are_tried_again_when_asked_and_nothing_else_is(jobs: Jobs, tmp_path: Path) -> None:
    """A video that was not there the first time; the others keep their rows."""
    examples = [replace(each, uri=str(jobs.manifest.parent / each.uri)) for each in read_manifest(str(jobs.manifest))]
    hidden = next(example for example in examples if example.split == "train")
    late = tmp_path / "late.mp4"
    shutil.copy(hidden.uri, late)
    manifest = tmp_path / "manifest.parquet"
    chosen = [example for example in examples if example.split == "train"][1:9]
    write_manifest([replace(hidden, uri=str(late)), *chosen], str(manifest))
    settings = (f"data.manifest={manifest}", "data.max_bad_fraction=0.2")
    data = late.read_bytes()
    late.unlink()
    first = jobs.run("generate", "late", *settings)
    assert "1 of 9 videos could not be used" in first and f"video_missing      1  {hidden.id}: " in first
    before = {row["id"]: row for row in rationales(jobs.run_dir("late"))}
    late.write_bytes(data)
    assert "are there already" in jobs.run("generate", "late", *settings)
    again = jobs.run("generate", "late", *settings, flags=("--retry-errors",))
    after = {row["id"]: row for row in rationales(jobs.run_dir("late"))}
    assert after.pop(hidden.id)["error_code"] is None and before.pop(hidden.id)["error_code"] == "video_missing"
    assert after == before and "1 videos with errors are tried again" in again


def test_what_engines_do_can_be_watched(jobs: Jobs, ray_cluster: RayCluster) -> None:
    """Ray's metrics endpoint of the node, which the dashboard and Prometheus read, while a job runs."""
    seen = watch(jobs.start("generate", "watched"), ray_cluster, "ray_rbft_inference_")
    assert seen.keys() - {"idle_seconds_total"} == {  # it may never have been
        *("videos_total", "tokens_total", "decode_seconds_total", "suspect_blocks_total"),
        *("requests", "clips", "frame_bytes", "remaining_videos"),
    }
    assert seen["videos_total"] > 0 and seen["tokens_total"] > 4 * seen["videos_total"]
    assert seen["suspect_blocks_total"] < 0.5


@pytest.mark.slow
def test_how_training_goes_can_be_watched(jobs: Jobs, ray_cluster: RayCluster) -> None:
    seen = watch(jobs.start("train", "watched", *TRAINING), ray_cluster, "ray_rbft_training_")
    assert seen.keys() == {"step", "num_steps", "loss", "grad_norm", "samples_per_second", "data_wait_ratio", "failures_total"}
    assert 1 <= seen["step"] <= seen["num_steps"] == 12
    assert seen["failures_total"] < 0.5


def watch(job: subprocess.Popen[str], ray_cluster: RayCluster, prefix: str) -> dict[str, float]:
    """The metrics that begin with `prefix`, without it, as they were last, at the end of `job`. Fails the test if the job does."""
    seen: dict[str, float] = {}

    def is_over() -> bool:
        with suppress(OSError):  # right after a head starts, nobody answers there
            seen.update({name.removeprefix(prefix): value for name, value in scrape(ray_cluster).items() if name.startswith(prefix)})
        return job.poll() is not None

    wait_for(is_over, job, timeout_s=900)
    is_over()  # a job sends what it has last when it ends
    output = job.stdout.read() if job.stdout else ""
    assert job.returncode == 0, output
    return seen


def scrape(ray_cluster: RayCluster) -> dict[str, float]:
    """What is at the node's Prometheus endpoint, by name; of several with other tags, the sum."""
    found: dict[str, float] = {}
    with urllib.request.urlopen(f"http://127.0.0.1:{ray_cluster.metrics_port}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if not line.startswith("#"):
                name, value = line.partition("{")[0], float(line.rpartition(" ")[2])
                found[name] = found.get(name, 0.0) + value
    return found
