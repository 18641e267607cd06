"""Cores that processes have to themselves, and give up however they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

CLAIM = """
import os, sys
from pathlib import Path
from rbft.cores import claim_cores
cores = claim_cores(int(sys.argv[1]), Path(sys.argv[2]))
print(cores, sorted(os.sched_getaffinity(0)), flush=True)
sys.stdin.read()
"""


def claim(count: int, folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A process that has claimed so many cores and holds them, and what it says: those claimed, and those it may use."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(count), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_processes_get_cores_of_their_own_and_a_killed_one_gives_them_up(tmp_path: Path) -> None:
    all_cores = sorted(os.sched_getaffinity(0))
    first, said = claim(1, tmp_path)
    assert said == f"{all_cores[:1]} {all_cores[:1]}"
    rest, said = claim(len(all_cores) - 1, tmp_path)
    assert said == f"{all_cores[1:]} {all_cores[1:] or all_cores}"
    late, said = claim(1, tmp_path)
    assert said == f"[] {all_cores}", "where none is left a process is not pinned"
    first.send_signal(signal.SIGKILL)
    first.wait()
    next_one, said = claim(1, tmp_path)
    assert said == f"{all_cores[:1]} {all_cores[:1]}"
    for process in (rest, late, next_one):
        process.communicate("")
