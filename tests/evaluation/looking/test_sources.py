"""Saliency finds what moves; grounding reads JSON strictly and asks a real engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from rbft.config import MaskingConfig, ModelConfig
from rbft.engines.hf import HFEngine
from rbft.errors import ConfigError
from rbft.evaluation.looking.box_files import write_boxes
from rbft.evaluation.looking.boxes import Box, boxes_in_frames, covered
from rbft.evaluation.looking.grounding import GroundedBoxes, parse_boxes
from rbft.evaluation.looking.saliency import salient_boxes
from rbft.evaluation.looking.sources import FileBoxes, SaliencyBoxes, make_source
from tests.evaluation.looking.clips import moving_square
from tests.samples import SPEC, random_clip
from tests.tiny_models import make_tiny_model


def test_the_most_salient_box_holds_what_moves_and_little_else() -> None:
    clip, covered_THW = moving_square()
    found_THW = covered(boxes_in_frames(salient_boxes(clip, 1), clip), *covered_THW.shape[1:])
    overlap = (found_THW & covered_THW).sum(axis=(1, 2)) / (found_THW | covered_THW).sum(axis=(1, 2))
    assert overlap.min() > 0.6
    assert salient_boxes(clip, 1) == salient_boxes(clip, 1)


def test_what_stands_still_is_found_by_its_colour() -> None:
    clip, covered_THW = moving_square(step=0)
    found_THW = covered(boxes_in_frames(salient_boxes(clip, 3), clip), *covered_THW.shape[1:])
    assert found_THW[covered_THW].mean() > 0.95
    assert found_THW.mean() < 3 * covered_THW.mean()


def test_a_frame_gives_no_more_boxes_than_asked_for() -> None:
    clip = random_clip(8, 84, 84)
    per_frame = [len(boxes) for boxes in boxes_in_frames(salient_boxes(clip, 2), clip)]
    assert max(per_frame) <= 2


def test_a_video_that_the_file_does_not_have_has_no_boxes(tmp_path: Path) -> None:
    box = Box(0, 0, 1, 1)
    source = FileBoxes(write_boxes(tmp_path / "boxes.parquet", {"a": [box]}))
    assert asyncio.run(source.boxes("a", random_clip())) == (box,)
    assert asyncio.run(source.boxes("b", random_clip())) == ()


def test_an_answer_of_boxes_in_pixels_becomes_shares_of_the_frame() -> None:
    text = '```json\n[\n\t{"bbox_2d": [21, 14, 42, 28], "label": "bear"},\n\t{"bbox_2d": [-3, 0, 90, 56], "label": "bear"}\n]\n```'
    assert parse_boxes(text, 56, 84, 2.0) == (
        Box(0.25, 0.25, 0.5, 0.5, time_s=2.0, name="bear"),
        Box(0.0, 0.0, 1.0, 1.0, time_s=2.0, name="bear 2"),
    )
    assert parse_boxes("[]", 56, 84) == ()


@pytest.mark.parametrize(
    "text",
    [
        "There is a bear at [21, 14, 42, 28].",
        '[{"bbox_2d": [21, 14, 42, 28], "label": "bear"}',
        '{"bbox_2d": [21, 14, 42, 28], "label": "bear"}',
        '[{"bbox_2d": [21, 14, 42], "label": "bear"}]',
        '[{"bbox_2d": [21, 14, 42, true], "label": "bear"}]',
        '[{"bbox_2d": [21, 14, 42, NaN], "label": "bear"}]',
        '[{"bbox_2d": "21 14 42 28", "label": "bear"}]',
        '[{"bbox_2d": 21, "label": "bear"}]',
        '[{"bbox_2d": [42, 14, 21, 28], "label": "bear"}]',
        '[{"bbox_2d": [210, 14, 420, 28], "label": "bear"}]',
        '[{"bbox_2d": [21, 14, 42, 28]}]',
        '[{"bbox_2d": [21, 14, 42, 28], "label": 3}]',
        '[{"bbox_2d": [21, 14, 42, 1e999], "label": "bear"}]',
        "[[21, 14, 42, 28]]",
        "",
    ],
)
def test_what_is_not_the_json_that_was_asked_for_is_no_box(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # pydantic's error is one
        parse_boxes(text, 56, 84)


def test_a_model_that_cannot_ground_is_counted_and_gives_no_boxes(tmp_path: Path) -> None:
    engine = HFEngine(ModelConfig(path=str(make_tiny_model(tmp_path / "tiny")), dtype="float32"), SPEC, device="cpu")
    source = GroundedBoxes(engine, num_moments=3, max_new_tokens=8)
    assert asyncio.run(source.boxes("v", random_clip(6))) == ()
    assert source.num_unreadable == 3
    engine.close()


def test_saliency_of_a_clip_of_one_colour_is_nothing() -> None:
    clip, _ = moving_square()
    clip.frames_THWC[:] = 7
    assert salient_boxes(clip) == ()
    assert np.isfinite(clip.frames_THWC).all()


def test_a_file_of_boxes_wins_over_what_would_be_found(tmp_path: Path) -> None:
    path = write_boxes(tmp_path / "boxes.parquet", {"a": [Box(0, 0, 1, 1)]})
    assert isinstance(make_source(MaskingConfig(boxes=str(path), find="grounding")), FileBoxes)
    assert isinstance(make_source(MaskingConfig()), SaliencyBoxes)
    with pytest.raises(ConfigError, match="saliency"):
        make_source(MaskingConfig(find="grounding"))
