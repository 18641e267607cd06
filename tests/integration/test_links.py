"""A cut link between two machines (`benchmarks.two_machines`). Engines only sleep (`benchmarks.sleeping_job`), as nothing here is about
them; the job checks at its end that every id has exactly one row."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.two_machines import HEAD, NODE, TwoMachines
from tests.integration.conftest import wait_until

pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow]

PATIENCE = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
"""A node that is silent for some ten seconds is given up; Ray's own patience is a good minute."""


@pytest.fixture
def machines(short_tmp: Path) -> Iterator[TwoMachines]:
    folder = short_tmp / "links"
    folder.mkdir()
    with TwoMachines(folder, PATIENCE) as machines:
        yield machines


def test_a_cut_link_costs_at_most_the_node_behind_it(machines: TwoMachines, tmp_path: Path) -> None:
    """Cut for a moment, nothing happens. Cut for longer, the node is given up and its blocks are done elsewhere; once the link is back the
    node sees that and leaves, and, started again, takes part again."""
    node = machines.start_ray(NODE)
    job = machines.start(HEAD, sys.executable, "-m", "benchmarks.sleeping_job", str(tmp_path), "2", "240")

    def actors() -> int:
        return len(list(tmp_path.glob("began-*")))

    def parts() -> int:
        return len(list(tmp_path.glob("parts/*.parquet")))

    def wait_for(condition: Callable[[], bool]) -> None:
        wait_until(lambda: condition() or job.poll() is not None, 300, "the job did not get that far")
        assert condition(), machines.log.read_text(errors="replace")

    wait_for(lambda: actors() == 2 and parts() >= 2)
    machines.cut()
    time.sleep(3)
    machines.mend()
    seen = parts()
    wait_for(lambda: parts() >= seen + 10)
    assert actors() == 2 and node.poll() is None, "three seconds are no reason to give a node up"

    machines.cut()
    time.sleep(30)  # longer than the head's patience
    seen = parts()
    wait_for(lambda: parts() >= seen + 2)  # the head's own actor goes on
    machines.mend()
    wait_until(lambda: node.poll() is not None, 120, "the node that was given up has not noticed")
    machines.start_ray(NODE)
    wait_for(lambda: actors() == 3)
    assert job.wait(timeout=600) == 0, machines.log.read_text(errors="replace")
