"""CPU cores that a process has to itself, among ours on this machine: two engines whose threads share cores crawl.

A core is claimed by a lock on a small file, which the kernel frees when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

_HELD: list[int] = []
"""Open descriptors of claimed cores' files; closing one gives its core up."""


def claim_cores(count: int, folder: Path | None = None) -> list[int]:
    """Pin this process, and what it starts from now on, to `count` cores that no other process of ours has claimed; their numbers.

    Empty, and nothing is pinned, if so many are not free. `folder` is where the locks are, by default one for this user and machine.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"rbft-cores-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    claimed: dict[int, int] = {}
    for core in sorted(os.sched_getaffinity(0)):
        if len(claimed) == count:
            break
        descriptor = os.open(folder / str(core), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            claimed[core] = descriptor
            continue
        os.close(descriptor)
    if len(claimed) < count:
        for descriptor in claimed.values():
            os.close(descriptor)
        return []
    _HELD.extend(claimed.values())
    os.sched_setaffinity(0, claimed)
    return list(claimed)
