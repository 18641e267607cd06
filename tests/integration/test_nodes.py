"""Generation over several nodes of one machine, while they come and go, and what happens to the store the rows go to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from miniature.cluster_demo import differences
from rbft import rows, storage
from rbft.client import Client
from rbft.errors import EngineError, ServiceError
from rbft.records import rationale_schema
from rbft.run_status import read_status
from tests.integration.conftest import TRAINING, Jobs, wait_for, wait_until
from tests.integration.training_runs import lineage, num_logged, weights
from tests.s3 import FlakyS3
from tests.serve.samples import write_clip

pytestmark = [pytest.mark.timeout(1500), pytest.mark.slow]


@pytest.fixture
def nodes(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of a head that takes no actors and two nodes that do; `add_node` and `remove_node` as `ray.cluster_utils` has them."""
    from ray._private.authentication_test_utils import reset_auth_token_state
    from ray.cluster_utils import Cluster

    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):  # of the session's own cluster
        monkeypatch.delenv(name, raising=False)
    token = short_tmp / "nodes-token"
    token.write_text("fedcba9876543210" * 4)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    reset_auth_token_state()  # Ray reads the environment once in a process, and a test before this one may have had it do so
    store = {"object_store_memory": 256 << 20}
    cluster = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args={"num_cpus": 0, **store})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=3, **store)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()
        monkeypatch.undo()
        reset_auth_token_state()


@pytest.fixture
def jobs_on_nodes(jobs: Jobs, nodes: Any) -> Jobs:
    environment = {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")} | {"RAY_ADDRESS": nodes.address}
    return Jobs(jobs.repository, jobs.output_dir, jobs.manifest, environment)


def written(run: Path) -> list[tuple[str, str | None]]:
    """Id and text of the rows of a complete folder of rationales, in order."""
    (folder,) = run.glob("rationales/*")
    table = rows.read_finished(str(folder), "rationales", rationale_schema())
    return list(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


def has_parts(run: Path) -> bool:
    return any(run.glob("rationales/*/parts/*.parquet"))


def node_with(nodes: Any, actor: str) -> Any:
    """A worker node below whose raylet an actor of that class runs."""
    found = next((node for node in nodes.worker_nodes if has_actor(node, actor)), None)
    assert found is not None, f"no node has an {actor}"
    return found


def has_actor(node: Any, actor: str) -> bool:
    (raylet,) = node.all_processes["raylet"]
    below = psutil.Process(raylet.process.pid).children(recursive=True)
    return any(actor in " ".join(_cmdline(process)) for process in below)


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_a_node_that_dies_costs_nothing_but_time(jobs_on_nodes: Jobs, nodes: Any, finished_run: Path) -> None:
    run = jobs_on_nodes.run_dir("node-killed")
    job = jobs_on_nodes.start("generate", "node-killed", "engine.num_actors=2", "engine.rows_per_block=4")
    wait_for(lambda: has_parts(run), job)
    nodes.remove_node(node_with(nodes, "EngineActor"), allow_graceful=False)
    output, _ = job.communicate(timeout=900)
    assert job.returncode == 0, output
    assert written(run) == written(finished_run)


def test_a_job_begins_with_the_nodes_there_are_and_takes_those_that_come(jobs_on_nodes: Jobs, nodes: Any, finished_run: Path) -> None:
    """All nodes gone, the job waits; with a new one it goes on to the end."""
    run = jobs_on_nodes.run_dir("nodes-come")
    job = jobs_on_nodes.start("generate", "nodes-come", "engine.num_actors=2", "engine.min_actors=1", "engine.rows_per_block=4")
    wait_for(lambda: has_parts(run), job)
    for node in list(nodes.worker_nodes):
        nodes.remove_node(node, allow_graceful=False)
    with pytest.raises(subprocess.TimeoutExpired):
        job.communicate(timeout=5)
    nodes.add_node(num_cpus=3, object_store_memory=256 << 20)
    output, _ = job.communicate(timeout=900)
    assert job.returncode == 0, output
    assert written(run) == written(finished_run)


def test_a_full_disk_ends_the_job_and_loses_nothing(jobs: Jobs, finished_run: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
    try:
        (disk / "filler").write_bytes(bytes((1 << 20) - (100 << 10)))
        output = jobs.run("generate", "full", f"output_dir={disk}", "engine.rows_per_block=4", expect=2)
        assert "cannot be written" in output and "make room on its disk" in output and "Traceback" not in output
        kept = list((disk / "full").glob("rationales/*/parts/*.parquet"))
        assert kept and not list(disk.rglob("*.tmp")) and not list(disk.rglob("COMPLETE.json"))
        (disk / "filler").unlink()
        assert "going on" in jobs.run("generate", "full", f"output_dir={disk}", "engine.rows_per_block=4")
        assert written(disk / "full") == written(finished_run)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_engine_that_hangs_is_replaced(jobs: Jobs, ray_cluster: Any, finished_run: Path) -> None:
    """SIGSTOP: it answers nothing and does not die."""
    run = jobs.run_dir("hangs")
    job = jobs.start("generate", "hangs", "engine.request_timeout_s=20", "engine.rows_per_block=4")
    wait_for(lambda: has_parts(run), job)
    stopped = [each for each in psutil.Process(ray_cluster.pid).children(recursive=True) if "EngineCore" in " ".join(_cmdline(each))]
    for each in stopped:
        each.send_signal(signal.SIGSTOP)
    output, _ = job.communicate(timeout=900)
    assert job.returncode == 0, output
    assert written(run) == written(finished_run)
    assert stopped and not any(each.is_running() and each.status() == psutil.STATUS_STOPPED for each in stopped)


def test_a_store_that_is_slow_and_fails_now_and_then_loses_nothing(
    jobs: Jobs, finished_run: Path, flaky_s3: FlakyS3, s3_environment: dict[str, str]
) -> None:
    """The whole run folder on S3, spoken to over HTTP. A Ray of the job's own, as a cluster's workers would have the key already."""
    environment = {"RAY_ADDRESS": "", **s3_environment}
    on_s3 = Jobs(jobs.repository, jobs.output_dir, jobs.manifest, environment)
    on_s3.run("generate", "s3", "output_dir=s3://rbft/runs", "engine.rows_per_block=4")
    assert flaky_s3.num_failed > 20, "the store has failed that often"
    from pyarrow import fs

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment.items():
            patch.setenv(name, value)
        store, _ = fs.FileSystem.from_uri("s3://rbft/runs")
        names = [info.path for info in store.get_file_info(fs.FileSelector("rbft/runs/s3", recursive=True))]
        (marker,) = [name for name in names if "/rationales/" in name and name.endswith("COMPLETE.json")]
        table = rows.read_finished(f"s3://{marker.rpartition('/')[0]}", "rationales", rationale_schema())
    assert list(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)) == written(finished_run)
    assert not [name for name in names if name.endswith("lease.json")]


def test_a_run_on_s3_whose_node_goes_in_a_stage_ends_as_if_it_had_not(
    jobs: Jobs, finished_run: Path, flaky_s3: FlakyS3, s3_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the second stage of RB-FT, and all that the node had of it lost: its scratch, and the models that it had fetched."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    scratch, root = tmp_path / "scratch", "s3://rbft/runs/s3-whole"
    on_s3 = Jobs(jobs.repository, jobs.output_dir, jobs.manifest, {"RAY_ADDRESS": "", "RBFT_MODEL_CACHE": str(tmp_path / "models")})
    settings = ("output_dir=s3://rbft/runs", f"training.scratch={scratch}")

    def stored(folder: str) -> list[str]:
        return [str(info.path) for info in storage.list_files(f"{root}/{folder}", recursive=True)]

    job = on_s3.start("pipeline", "s3-whole", *settings)
    wait_for(lambda: any("/checkpoints/" in name and name.endswith("/COMPLETE.json") for name in stored("train/rb-ft/classify")), job, 900)
    job.send_signal(signal.SIGKILL)
    job.wait()
    wait_until(lambda: not workers_of(scratch), 120, "workers outlive their driver")
    shutil.rmtree(scratch)
    shutil.rmtree(tmp_path / "models")
    output = on_s3.run("pipeline", "s3-whole", *settings)
    assert "train direct-sft-1/classify: is there already (s3://rbft/runs/s3-whole/train/" in output and flaky_s3.num_failed > 20
    for stage in ("direct-sft-1/classify", "direct-sft-2/classify", "rb-ft/rationale", "rb-ft/classify"):
        (local,) = finished_run.glob(f"train/{stage}/*/final/model.safetensors")
        (there,) = [name for name in stored(f"train/{stage}") if name.endswith("/final/model.safetensors")]
        assert storage.read_bytes(f"s3://{there}") == local.read_bytes(), stage
    summaries = (storage.read_json(f"{root}/summary.json"), json.loads((finished_run / "summary.json").read_text()))
    assert differences(*(summary["systems"] for summary in summaries)) == []
    assert not list(scratch.rglob("*.pt"))
    status = read_status(root)
    assert status.is_done and status.job is None


def workers_of(scratch: Path) -> list[psutil.Process]:
    """Training workers with something open in `scratch`."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(each.path.startswith(str(scratch)) for each in process.open_files()):
                found.append(process)
        except psutil.Error:  # ended this moment, or somebody else's
            continue
    return found


@pytest.fixture
def flaky_s3() -> Iterator[FlakyS3]:
    server = FlakyS3("rbft")
    yield server
    server.close()


@pytest.fixture
def s3_environment(flaky_s3: FlakyS3) -> dict[str, str]:
    return flaky_s3.environment


def test_a_node_that_dies_costs_training_at_most_the_interval(jobs_on_nodes: Jobs, nodes: Any, finished_training: Path) -> None:
    run = jobs_on_nodes.run_dir("train-node-killed")
    job = jobs_on_nodes.start("train", "train-node-killed", *TRAINING)
    wait_for(lambda: num_logged(run) >= 3, job)
    nodes.remove_node(node_with(nodes, "RayTrainWorker"), allow_graceful=False)
    output, _ = job.communicate(timeout=900)
    assert job.returncode == 0, output
    assert weights(run) == weights(finished_training)


def test_training_leaves_a_node_that_will_be_taken_away_without_losing_a_step(jobs_on_nodes: Jobs, nodes: Any) -> None:
    """Ray's notice, as an autoscaler gives it for a spot machine; there is no checkpoint but the one that the notice causes."""
    long_enough = (*TRAINING, "training.classify_epochs=8", "training.checkpoint_every_steps=1000")
    jobs_on_nodes.run("train", "train-long", *long_enough)
    run = jobs_on_nodes.run_dir("train-drained")
    job = jobs_on_nodes.start("train", "train-drained", *long_enough)
    wait_for(lambda: num_logged(run) >= 1, job)
    node = node_with(nodes, "RayTrainWorker")
    drain = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", nodes.address, "--node-id", node.node_id]
    drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", "300"]
    subprocess.run(drain, env=os.environ | jobs_on_nodes.environment, check=True, capture_output=True)
    output, _ = job.communicate(timeout=900)
    assert job.returncode == 0 and "(a node is about to be taken away)" in output, output
    assert weights(run) == weights(jobs_on_nodes.run_dir("train-long"))


def test_training_takes_another_worker_when_a_node_comes(jobs_on_nodes: Jobs, nodes: Any) -> None:
    """It begins on the one node there is, saves when there is room for more, and goes on with two workers where it was."""
    run = jobs_on_nodes.run_dir("train-grows")
    nodes.remove_node(nodes.worker_nodes.copy().pop())
    epochs = 48  # Ray looks for room once a minute
    settings = (
        "training.num_cpus=3",
        "training.min_workers=1",
        f"training.classify_epochs={epochs}",
        "training.checkpoint_every_steps=1000",
    )
    job = jobs_on_nodes.start("train", "train-grows", *TRAINING, *settings)
    wait_for(lambda: num_logged(run) >= 1, job)
    nodes.add_node(num_cpus=3, object_store_memory=256 << 20)
    output, _ = job.communicate(timeout=900)
    assert job.returncode == 0 and "(there is room for 2 workers)" in output, output
    assert num_logged(run) == epochs * 12 and lineage(run)["num_workers"] == 2


@pytest.fixture
def service(jobs_on_nodes: Jobs, miniature_model: Path) -> Iterator[Client]:
    """A client of two replicas, of which a node has room for one."""
    words = ["--config", "configs/miniature.yaml", "--model", str(miniature_model), "--port", "0"]
    words += ["--set", "serve.num_replicas=2", "--set", "engine.num_cpus=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "serve", *words],
        cwd=jobs_on_nodes.repository,
        env=os.environ | jobs_on_nodes.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        ready = next((line for line in process.stdout if line.startswith("ready: ")), None)
        assert ready is not None, "the service did not start"
        with Client(ready.split()[1]) as client:
            yield client
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=300)


def test_a_node_that_dies_under_serving_costs_at_most_what_its_replica_had(service: Client, nodes: Any, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "square.mp4", seconds=8)
    expected = service.classify(clip).probabilities
    nodes.remove_node(node_with(nodes, "ServeReplica"), allow_graceful=False)
    in_a_row, deadline = 0, time.monotonic() + 300
    while in_a_row < 20:
        assert time.monotonic() < deadline, "the other replica does not answer"
        try:
            assert service.classify(clip).probabilities == pytest.approx(expected, abs=1e-4)
            in_a_row += 1
        except (ServiceError, EngineError):  # it was in the dead replica, or on its way there
            in_a_row = 0
    joined = nodes.add_node(num_cpus=3, object_store_memory=256 << 20)
    wait_until(lambda: has_actor(joined, "ServeReplica"), 600, "no replica on the node that came")
