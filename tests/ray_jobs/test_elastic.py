"""How many workers an elastic job takes of the room there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray.train

from ray_jobs.elastic import DividingPolicy


@pytest.mark.parametrize(("room", "taken"), [(0, 0), (1, 0), (2, 2), (3, 2), (7, 4), (8, 8), (100, 8)])
def test_of_the_possible_counts_the_largest_that_fits_is_taken(tmp_path: Path, room: int, taken: int) -> None:
    scaling = ray.train.ScalingConfig(num_workers=(2, 8), resources_per_worker={"CPU": 3})
    policy = DividingPolicy(scaling, (2, 4, 8), str(tmp_path / "stop"))
    # On two nodes, of which each has a CPU that is not enough for a worker.
    nodes = {"a": {"CPU": 3.0 * (room // 2) + 1}, "b": {"CPU": 3.0 * (room - room // 2) + 1}}
    assert policy._count_possible_workers(nodes) == taken
