"""One job at a time on a folder, and none locked out for ever."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from rbft import lease, storage
from rbft.errors import JobError
from rbft.lease import STALE_S, Lease


def test_a_second_job_is_refused_while_the_first_works(tmp_path: Path) -> None:
    with (
        Lease(str(tmp_path), "rbft pipeline"),
        pytest.raises(JobError, match=r"another job works there \(rbft pipeline, process \d+ on .*wait for it"),
        Lease(str(tmp_path), "rbft train"),
    ):
        pass
    assert not list(tmp_path.iterdir())  # and the refused one has not let the first one's lease go before its time


def test_a_refused_job_leaves_the_lease_as_it_was(tmp_path: Path) -> None:
    with Lease(str(tmp_path), "first") as held:
        with pytest.raises(JobError), Lease(str(tmp_path), "second"):
            pass
        assert json.loads((tmp_path / "lease.json").read_text())["id"] == held.id


def test_a_job_that_was_killed_locks_nobody_out(tmp_path: Path) -> None:
    lines = (
        "import time",
        "from rbft.lease import Lease",
        f"with Lease({str(tmp_path)!r}, 'killed'):",
        "    print('held', flush=True)",
        "    time.sleep(60)",
    )
    holder = subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(JobError), Lease(str(tmp_path), "too early"):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with Lease(str(tmp_path), "next"):
        assert json.loads((tmp_path / "lease.json").read_text())["command"] == "next"


def from_elsewhere(folder: Path, silence_s: float) -> None:
    """The lease of a job on another machine."""
    record = {"id": "x", "host": "elsewhere", "pid": 1, "started": 0.0, "command": "rbft pipeline", "at": time.time() - silence_s}
    (folder / "new").write_text(json.dumps(record))
    (folder / "new").replace(folder / "lease.json")


def test_a_job_on_another_machine_counts_if_it_gives_another_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_LOOK_S", 0.05)
    from_elsewhere(tmp_path, 1.0)
    renewing = threading.Timer(0.5, from_elsewhere, (tmp_path, 0.0))
    renewing.start()
    with pytest.raises(JobError, match=r"another job works there \(rbft pipeline, process 1 on elsewhere"), Lease(str(tmp_path), "next"):
        pass
    assert not renewing.is_alive(), "it was refused before it could be known"


@pytest.mark.parametrize("silence_s", [1.0, STALE_S + 1])
def test_one_that_went_with_its_machine_is_waited_for_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silence_s: float
) -> None:
    monkeypatch.setattr(lease, "_LOOK_S", 0.05)
    from_elsewhere(tmp_path, silence_s)
    monkeypatch.setattr(lease, "STALE_S", min(STALE_S, silence_s + 0.5))
    with Lease(str(tmp_path), "next"):
        assert json.loads((tmp_path / "lease.json").read_text())["command"] == "next"


def test_another_process_with_the_pid_of_a_dead_holder_is_not_the_holder(tmp_path: Path) -> None:
    parent = psutil.Process().parent()
    assert parent is not None
    record = {"id": "x", "host": socket.gethostname(), "pid": parent.pid, "started": 1.0, "command": "old", "at": time.time()}
    (tmp_path / "lease.json").write_text(json.dumps(record))
    with Lease(str(tmp_path), "next"):
        pass


def test_a_lease_that_was_taken_over_interrupts_its_old_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    with Lease(str(tmp_path), "suspended"):
        (tmp_path / "lease.json").write_text(json.dumps({"id": "other"}))
        with pytest.raises(KeyboardInterrupt):
            time.sleep(5)
    assert json.loads((tmp_path / "lease.json").read_text()) == {"id": "other"}


def test_a_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    with Lease(str(tmp_path), "at work"):
        first = json.loads((tmp_path / "lease.json").read_text())["at"]
        time.sleep(0.5)
        assert json.loads((tmp_path / "lease.json").read_text())["at"] > first


def test_a_store_that_refuses_for_a_while_does_not_cost_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.05)

    def refuse(*_: object) -> None:
        raise OSError("AWS Error ACCESS_DENIED")

    with Lease(str(tmp_path), "at work"):
        first = json.loads((tmp_path / "lease.json").read_text())["at"]
        with monkeypatch.context() as refusing:
            refusing.setattr(storage, "_file_type", refuse)
            time.sleep(0.3)
        time.sleep(0.5)
        assert json.loads((tmp_path / "lease.json").read_text())["at"] > first + 0.4


def test_a_store_that_fails_now_and_then_does_not_cost_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    with Lease(str(tmp_path), "at work"):
        record = (tmp_path / "lease.json").read_text()
        (tmp_path / "lease.json").write_text("{half")
        time.sleep(0.3)
        (tmp_path / "lease.json").write_text(record)
        time.sleep(0.5)
        assert json.loads((tmp_path / "lease.json").read_text())["at"] > json.loads(record)["at"]
