"""How a driver asks its workers to stop: by a file, on a disk or in a store."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from ray_jobs.stopping import DriverStop, read_stop_file


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("in_store", [False, True])
def test_ctrl_c_leaves_a_file_for_the_workers_which_goes_when_they_have_ended(tmp_path: Path, in_store: bool) -> None:
    stop_file = f"{'s3://runs' if in_store else tmp_path}/train/.ray/a.stop"
    assert read_stop_file(stop_file) is None
    with DriverStop(stop_file) as stop:

        def wait_to_be_told() -> str | None:
            os.kill(os.getpid(), signal.SIGINT)
            deadline = time.monotonic() + 30
            while (why := read_stop_file(stop_file)) is None and time.monotonic() < deadline:
                time.sleep(0.05)
            return why

        assert stop.call(wait_to_be_told) == "Ctrl-C" and stop.signal == signal.SIGINT
    assert read_stop_file(stop_file) is None
