"""What encoding clips leaves behind."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.clips import Case, make_clip


def test_encoding_av1_does_not_put_this_process_before_all_others(tmp_path: Path) -> None:
    """As SVT-AV1 does to who calls it, where that is root: every process started afterwards would hold a core for itself."""
    make_clip(Case("small", "libsvtav1", 64, 64, 1, {"preset": "12", "svtav1-params": "lp=1"}, fps=4), tmp_path)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
