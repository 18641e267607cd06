"""The boxes of a drawn world are where something was drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from miniature.boxes import write_world_boxes
from miniature.draw import render
from miniature.world import sample_world
from miniature.write import write_world
from rbft.evaluation.looking.box_files import read_boxes
from rbft.evaluation.looking.boxes import boxes_in_frames, covered
from rbft.records import VideoSpec
from rbft.video.decode import decode


def test_every_frame_of_every_clip_has_the_box_that_was_drawn(tmp_path: Path) -> None:
    world = sample_world(5, {"train": 2, "test": 3})
    write_world(tmp_path, world)
    boxes = read_boxes(write_world_boxes(tmp_path))
    assert list(boxes) == [clip.plan.id for clip in world]
    for clip in world:
        decoded = decode(str(tmp_path / f"clips/{clip.plan.id}.mp4"), VideoSpec(max_frames=8, max_pixels=7_056))
        found_THW = covered(boxes_in_frames(boxes[clip.plan.id], decoded), 84, 84)
        _, drawn = render(clip.plan)
        for found_HW, (x0, y0, x1, y1) in zip(found_THW, drawn, strict=True):
            rows, columns = np.nonzero(found_HW)
            edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            np.testing.assert_allclose(edges, (x0, y0, x1, y1), atol=0.6)
