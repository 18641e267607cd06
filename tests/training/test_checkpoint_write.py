"""A write that training leaves behind by an error comes to its end, unless another rank's part of it never does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from rbft.training.checkpoint_write import CheckpointWrite, Parts


def begin(folder: Path, rank: int, published: list[Parts]) -> CheckpointWrite:
    """Of two ranks."""
    return CheckpointWrite(folder, {folder / f"state/{rank}.pt": {"weights": torch.ones(4)}}, rank, 2, published.append)


def test_a_slow_write_is_finished_and_published_with_the_parts_of_both_ranks(tmp_path: Path) -> None:
    published: list[Parts] = []
    save = torch.save

    def save_slowly(*arguments: Any) -> None:
        time.sleep(0.5)
        save(*arguments)

    with mock.patch.object(torch, "save", save_slowly):
        writes = [begin(tmp_path, rank, published) for rank in (0, 1)]
        writes[0].finish(patience_s=30)
        writes[1].finish(patience_s=30)
    assert [sorted(parts) for parts in published] == [["state/0.pt", "state/1.pt"]]
    assert [write.problem for write in writes] == [None, None]


def test_rank_0_does_not_wait_for_ever_for_a_rank_that_has_died(tmp_path: Path) -> None:
    published: list[Parts] = []
    write = begin(tmp_path, 0, published)
    write.finish(patience_s=0.2)
    assert published == [] and write.problem is None
    assert torch.load(tmp_path / "state/0.pt")["weights"].sum() == 4, "its own part is whole"
