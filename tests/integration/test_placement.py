"""Several jobs on a cluster with too little room for them. Engines only sleep (`benchmarks.sleeping_job`), and each job checks at its end
that every id has exactly one row."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from miniature.local_cluster import LocalCluster
from tests.integration.conftest import free_port, wait_for

pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow]


@pytest.fixture
def cluster(short_tmp: Path) -> Iterator[LocalCluster]:
    """A head that takes no actors."""
    folder = short_tmp / f"placement-{free_port()}"
    folder.mkdir()
    with LocalCluster(folder, more={"PYTHONPATH": os.getcwd()}) as found:
        yield found


def start(cluster: LocalCluster, folder: Path, num_actors: int, num_blocks: int) -> subprocess.Popen[str]:
    folder.mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.sleeping_job", str(folder), str(num_actors), str(num_blocks)],
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def num_actors(folder: Path) -> int:
    return len(list(folder.glob("began-*")))


def test_jobs_that_want_more_than_there_is_share_it_wait_and_end(cluster: LocalCluster, tmp_path: Path) -> None:
    """Two jobs want two actors each where three have room: neither holds what it has while it waits for the rest. A third job finds no room
    at all, and waits; when one of the first has ended, it begins."""
    cluster.add_node(3)
    first, second = (start(cluster, tmp_path / name, 2, 60) for name in ("first", "second"))
    wait_for(lambda: num_actors(tmp_path / "first") > 0 and num_actors(tmp_path / "second") > 0, first)
    assert num_actors(tmp_path / "first") + num_actors(tmp_path / "second") <= 3
    third = start(cluster, tmp_path / "third", 1, 10)
    for job in (first, second, third):
        output, _ = job.communicate(timeout=600)
        assert job.returncode == 0, output
    assert all(num_actors(tmp_path / name) > 0 for name in ("first", "second", "third"))


def test_a_job_waits_for_the_first_node_there_is(cluster: LocalCluster, tmp_path: Path) -> None:
    job = start(cluster, tmp_path / "early", 2, 10)
    with pytest.raises(subprocess.TimeoutExpired):
        job.communicate(timeout=75)  # until it has said that it waits
    cluster.add_node(1)
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0 and "needed are 2 actors of 1 CPU, or some of them; free on the cluster: 0 CPU" in output, output
