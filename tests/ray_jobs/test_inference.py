"""What the driver checks of what its actors write."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs.inference import require_shared
from rbft import rows
from rbft.errors import JobError
from rbft.rationales.table import rationales_table
from rbft.records import Rationale


def test_rows_that_are_seen_are_enough_wherever_they_are(tmp_path: Path) -> None:
    rows.write_part(str(tmp_path / "second"), rationales_table([Rationale("a", 0, text="x")]))
    require_shared([str(tmp_path / "first"), str(tmp_path / "second")], patience_s=0)


def test_rows_that_are_not_seen_are_on_another_nodes_disk(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="are not seen here; give an output_dir on a disk that all nodes share"):
        require_shared([str(tmp_path / "first")], patience_s=0)


def test_a_store_is_seen_by_all() -> None:
    require_shared(["s3://nobody/asks"], patience_s=0)
