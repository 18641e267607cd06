"""Boxes: from a file, in frames, the most salient of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.errors import DataError, RBFTError
from rbft.evaluation.looking.box_files import read_boxes, write_boxes
from rbft.evaluation.looking.boxes import Box, boxes_in_frames, covered, most_salient
from tests.evaluation.looking.clips import clip_of

CLIP = clip_of(np.zeros((6, 56, 84, 3), dtype=np.uint8))


def square(left: float, side: float, **given: object) -> Box:
    return Box(left, 0.0, left + side, side, **given)  # type: ignore[arg-type]


def test_a_frame_has_the_boxes_of_the_nearest_moment_and_those_that_hold_throughout() -> None:
    start, end, always = square(0, 0.2, time_s=0.0), square(0.5, 0.2, time_s=4.0), square(0.1, 0.1)
    frames = boxes_in_frames([start, end, always], CLIP)
    assert frames == ((start, always),) * 3 + ((end, always),) * 3  # 2 s is as near to both, and the earlier counts


def test_a_moment_may_be_told_as_a_frame_of_the_source() -> None:
    by_frame, by_time = square(0, 0.2, frame=30), square(0, 0.2, time_s=3.0)
    assert by_frame.moment_s(CLIP.source_fps) == by_time.moment_s(CLIP.source_fps) == 3.0


def test_an_object_without_a_box_at_a_moment_is_not_there() -> None:
    dog = [square(0, 0.5, time_s=0.0, name="dog")]
    cat = [square(0, 0.4, time_s=time_s, name="cat") for time_s in (0.0, 5.0)]
    assert [len(boxes) for boxes in boxes_in_frames([*dog, *cat], CLIP)] == [2, 2, 2, 1, 1, 1]
    only_dog = boxes_in_frames([*dog, *cat[:1], cat[1]], CLIP, num_objects=1)
    assert [len(boxes) for boxes in only_dog] == [1] * 6  # the cat's areas add up to more


def test_the_most_salient_objects_have_the_largest_area_weighted_by_score_over_all_moments() -> None:
    large = square(0, 0.5, time_s=0.0, name="large", score=0.1)
    small = [square(0, 0.2, time_s=time_s, name="small", score=1.0) for time_s in (0.0, 1.0)]
    assert most_salient([large, *small], 1, 10.0) == tuple(small)
    assert most_salient([large, *small], 2, 10.0) == (large, *small)


def test_boxes_without_names_are_told_apart_by_their_rank_at_each_moment() -> None:
    boxes = [square(0, side, time_s=time_s) for time_s in (0.0, 1.0) for side in (0.1, 0.3, 0.2)]
    assert [box.x1 for box in most_salient(boxes, 2, 10.0)] == [0.3, 0.2, 0.3, 0.2]


@given(st.data())
def test_covered_pixels_are_as_many_as_the_boxes_have_area_but_for_their_edges(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(8, 60)), data.draw(st.integers(8, 60))
    x0, y0 = data.draw(st.floats(0, 0.8)), data.draw(st.floats(0, 0.8))
    x1, y1 = data.draw(st.floats(x0 + 0.05, 1)), data.draw(st.floats(y0 + 0.05, 1))
    count = int(covered(((Box(x0, y0, x1, y1),),), height, width).sum())
    assert 0 < count <= height * width
    assert abs(count - (x1 - x0) * (y1 - y0) * height * width) <= 2 * (height + width)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_boxes_come_back_from_a_file(tmp_path: Path, suffix: str) -> None:
    boxes = {"a": (square(0, 0.25, time_s=1.0, name="bear", score=0.5), square(0, 0.5, frame=3)), "-b": (square(0, 1.0),)}
    path = tmp_path / f"boxes.{suffix}"
    if suffix == "parquet":
        write_boxes(path, boxes)
    elif suffix == "jsonl":
        path.write_text(
            '{"id": "a", "x0": 0, "y0": 0, "x1": 0.25, "y1": 0.25, "time_s": 1, "name": "bear", "score": 0.5}\n'
            '{"id": "a", "x0": 0, "y0": 0, "x1": 0.5, "y1": 0.5, "frame": 3}\n'
            '{"id": "-b", "x0": 0, "y0": 0, "x1": 1, "y1": 1}\n'
        )
    else:
        path.write_text("id,x0,y0,x1,y1,time_s,frame,name,score\na,0,0,.25,.25,1,,bear,.5\na,0,0,.5,.5,,3,,\n-b,0,0,1,1,,,,\n")
    assert read_boxes(path) == boxes


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("a,0,0,120,80,,", "shares of the frame"),
        ("a,0.5,0,0.5,1,,", "shares of the frame"),
        ("a,0,0,1,,,", "'y1' is empty"),
        ("a,0,0,1,one,,", "not a number"),
        ("a,0,0,1,1,2,3", "leave one of them out"),
        ("a,0,0,1,1,,1.5", "count from 0"),
        (",0,0,1,1,,", "'id' is empty"),
    ],
)
def test_what_is_no_box_is_told_with_its_line(tmp_path: Path, row: str, complaint: str) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text(f"id,x0,y0,x1,y1,time_s,frame\nb,0,0,1,1,,\n{row}\n")
    with pytest.raises(RBFTError, match=r"boxes\.csv line 3") as error:
        read_boxes(path)
    assert complaint in str(error.value)


def test_a_file_without_boxes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("id,x0,y0,x1,y1\n")
    with pytest.raises(DataError, match="holds no boxes"):
        read_boxes(tmp_path / "boxes.csv")
