"""How soon a job, training and the service are at work again after each failure of a cluster.

Nodes are raylets on this machine, but for a cut link, which takes network namespaces, that is: Linux and root. Generation is a job of
engines that only sleep (`benchmarks.sleeping_job`); training and the service are the miniature's own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.sleeping_job import BLOCK, ROOT, Job, nodes
from benchmarks.two_machines import HEAD, NODE, TwoMachines
from miniature.local_cluster import LocalCluster, end
from miniature.world import sample_world
from miniature.write import write_world
from rbft.client import Client
from rbft.errors import EngineError, ServiceError

_WAIT_S = 600.0
_CUT_S = 100.0
"""Longer than Ray waits for a silent node: five checks of 10 s, 3 s apart."""
_LOG = "train.log"
_NODE_CPUS = 3
"""Room for one training worker, or for one replica and its engine."""


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


def node_dies_in_training() -> float:
    """The node of the only worker is killed; another is there: seconds until an optimiser step is new. There is a checkpoint a step."""
    with (
        tempfile.TemporaryDirectory(prefix="rbft-bench-") as folder,
        nodes([_NODE_CPUS, _NODE_CPUS]) as cluster,
        _training(cluster, Path(folder)) as job,
    ):
        _wait_until(lambda: _num_steps(folder) >= 5, job, Path(folder) / _LOG)
        node = cluster.node_with("RayTrainWorker")
        assert node is not None, "no node has the worker"
        killed, done = time.time(), _num_steps(folder)
        cluster.kill_node(node)
        _wait_until(lambda: _num_steps(folder) > done, job, Path(folder) / _LOG)
        return time.time() - killed


@contextmanager
def _training(cluster: LocalCluster, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Direct-SFT on a few of the miniature's clips, for so many epochs that it is ended before its end."""
    manifest = write_world(folder / "world", sample_world(seed=77, sizes={"train": 48, "test": 2}))
    settings = [f"output_dir={folder}", "name=run", f"data.manifest={manifest}", 'evaluation.systems=["direct-sft-1"]']
    settings += ["training.classify_epochs=500", "training.num_workers=1", "training.global_batch_size=4", "training.micro_batch_size=4"]
    settings += ["training.checkpoint_every_steps=1"]
    words = [sys.executable, "ray_jobs/train.py", "--config", "configs/miniature.yaml"]
    words += [word for setting in settings for word in ("--set", setting)]
    with (folder / _LOG).open("wb") as log:
        job = subprocess.Popen(words, cwd=ROOT, env=cluster.environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield job
    finally:
        end(job)


def _num_steps(folder: str) -> int:
    """Optimiser steps in the log."""
    return sum(log.read_bytes().count(b"\n") for log in Path(folder).glob("run/train/direct-sft-1/classify/*/log.jsonl"))


def node_dies_under_serving() -> float:
    """A node is killed that has one of two replicas: seconds until the first of twenty answers in a row, one after the other."""
    with tempfile.TemporaryDirectory(prefix="rbft-bench-") as folder, nodes([_NODE_CPUS, _NODE_CPUS]) as cluster:
        write_world(Path(folder), sample_world(seed=77, sizes={"train": 2, "test": 2}))
        clip = next(Path(folder).rglob("*.mp4"))
        with _service(cluster) as client:
            client.classify(clip)
            node = cluster.node_with("ServeReplica")
            assert node is not None, "no node has a replica"
            killed = time.time()
            cluster.kill_node(node)
            answered: list[float] = []
            while len(answered) < 20:
                assert time.time() - killed < _WAIT_S, "the other replica does not answer"
                try:
                    client.classify(clip)
                    answered.append(time.time())
                except (ServiceError, EngineError):  # it was in the dead replica, or on its way there
                    answered.clear()
            return answered[0] - killed


@contextmanager
def _service(cluster: LocalCluster) -> Iterator[Client]:
    """A client of two replicas, of which a node has room for one."""
    words = [sys.executable, "-m", "serve", "--config", "configs/miniature.yaml", "--model", "miniature/model", "--port", "0"]
    words += ["--set", "serve.num_replicas=2", "--set", "engine.num_cpus=2"]
    process = subprocess.Popen(words, cwd=ROOT, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        ready = next((line for line in process.stdout if line.startswith("ready: ")), None)
        assert ready is not None, "the service did not start"
        with Client(ready.split()[1]) as client:
            yield client
    finally:
        process.terminate()
        process.communicate(timeout=300)


def link_is_cut() -> float | None:
    """The link to one of two nodes is cut for longer than Ray's patience: seconds from its return until an actor on that node begins.
    The node leaves by itself, and is started again at once, as KubeRay or the autoscaler does. The other goes on all the while, and every
    id has exactly one row in the end. None for who is not root."""
    if os.geteuid() != 0:
        return None
    with tempfile.TemporaryDirectory(prefix="rbft") as folder, TwoMachines(Path(folder)) as machines:
        node = machines.start_ray(NODE)
        run = Path(folder) / "run"
        run.mkdir()
        words = [sys.executable, "-m", "benchmarks.sleeping_job", str(run), "2", "320", "2"]
        job = machines.start(HEAD, *words)

        def num_began() -> int:
            return len(list(run.glob("began-*")))

        _wait_until(lambda: num_began() == 2 and len(list(run.glob("parts/*.parquet"))) >= 2, job, machines.log)
        machines.cut()
        time.sleep(_CUT_S)
        machines.mend()
        mended = time.time()
        _wait_until(lambda: node.poll() is not None, job, machines.log)
        machines.start_ray(NODE)
        _wait_until(lambda: num_began() == 3, job, machines.log)
        back_s = time.time() - mended
        assert job.wait(_WAIT_S) == 0, machines.log
        return back_s


def _wait_until(condition: Callable[[], bool], job: subprocess.Popen[bytes], log: Path) -> None:
    """Raises `SystemExit` with the end of the job's `log` if the job ends before that, or time does."""
    deadline = time.monotonic() + _WAIT_S
    while not condition():
        if job.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the job did not get that far:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.05)


FAILURES: dict[str, Callable[[], float | None]] = {
    "node in generation": node_dies,
    "node in training": node_dies_in_training,
    "node under serving": node_dies_under_serving,
    f"link cut for {_CUT_S:.0f} s": link_is_cut,
    "driver": driver_dies,
    "head": head_dies,
    "head, two nodes to start": partial(head_dies, (1, 1)),
}
