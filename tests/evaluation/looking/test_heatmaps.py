"""Heatmaps: the hot token is the yellow one, at its place and time; a strip has a row a model."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from rbft import rows
from rbft.evaluation.figures import frame_images
from rbft.evaluation.looking.attention_map import AttentionMap, map_schema, maps_from_table, maps_table
from rbft.evaluation.looking.boxes import Box, boxes_in_frames
from rbft.evaluation.looking.heatmaps import colours, frame_pngs, overlay, png, strip
from rbft.evaluation.thumbnails import thumbnails
from tests.evaluation.looking.clips import clip_of

GRAY = clip_of(np.full((5, 56, 84, 3), 128, dtype=np.uint8))


def hot(time: int, row: int, column: int) -> AttentionMap:
    """A map on one token of 3 x 2 x 3."""
    grid_THW = np.zeros((3, 2, 3), dtype=np.float32)
    grid_THW[time, row, column] = 0.4
    return AttentionMap(np.append(grid_THW.ravel(), np.float32(0.6)), grid_THW)


def test_the_scale_goes_from_purple_to_yellow() -> None:
    assert colours(np.array([0, 1, -1, 2], dtype=np.float32)).tolist() == [[68, 1, 84], [253, 231, 37]] * 2
    luminance = colours(np.linspace(0, 1, 50, dtype=np.float32)) @ [0.299, 0.587, 0.114]
    assert (np.diff(luminance) > 0).all()


def test_the_hot_token_is_the_yellowest_place_of_its_frames_and_of_no_others() -> None:
    shown = overlay(GRAY, hot(1, 0, 2)).frames_THWC.astype(int)
    yellowness = shown[..., 0] + shown[..., 1] - shown[..., 2]
    assert (yellowness[[0, 1, 4]] < 100).all()
    for frame in (2, 3):
        row, column = np.unravel_index(yellowness[frame].argmax(), (56, 84))
        assert row < 28 and column >= 56


def test_thumbnails_lie_under_the_heat_of_their_own_frames() -> None:
    few = thumbnails(GRAY, max_frames=3, max_height=28)
    assert (few.clip.timestamps_s, few.clip.frames_THWC.shape, few.num_frames) == ((0.0, 2.0, 4.0), (3, 28, 42, 3), 5)
    shown = overlay(few.clip, hot(1, 0, 2), few.num_frames).frames_THWC.astype(int)
    yellowness = shown[..., 0] + shown[..., 1] - shown[..., 2]
    assert (yellowness[[0, 2]] < 100).all()
    row, column = np.unravel_index(yellowness[1].argmax(), (28, 42))
    assert row < 14 and column >= 28


def test_an_overlaid_clip_is_shown_as_any_clip_and_its_frames_are_png_files() -> None:
    overlaid = overlay(GRAY, hot(0, 0, 0))
    assert overlaid.timestamps_s == GRAY.timestamps_s
    assert len(frame_images(overlaid)) == 5
    images = [Image.open(io.BytesIO(data)) for data in frame_pngs(overlaid)]
    assert [(image.format, image.size) for image in images] == [("PNG", (84, 56))] * 5
    np.testing.assert_array_equal(np.asarray(images[0]), overlaid.frames_THWC[0])


def test_a_strip_has_a_row_for_the_frames_and_one_for_each_model() -> None:
    boxes = boxes_in_frames([Box(0.25, 0.25, 0.75, 0.75)], GRAY)
    one, two = (
        strip(GRAY, dict(list({"a": hot(0, 0, 0), "b": hot(0, 1, 2)}.items())[:count]), boxes, max_frames=3, frame_height=56)
        for count in (1, 2)
    )
    assert one.width == two.width and two.height - one.height == 56 + 24
    pixels = np.asarray(two).astype(int)
    yellow = (pixels[..., 0] > 150) & (pixels[..., 1] > 150) & (pixels[..., 2] < 100)
    first, second = yellow[80:160, :84], yellow[160:240, :84]
    assert first[:48, :42].any() and not first[:, 60:].any()
    assert second[:, 60:].any() and not second[:, :42].any()
    assert png(two) == png(two)


def test_kept_maps_are_read_back_as_they_were_and_an_error_row_has_none(tmp_path: Path) -> None:
    maps = {"a": hot(0, 1, 2), "b": hot(1, 0, 0)}
    rows.write_part(str(tmp_path), maps_table(maps, {"c": "video_decode"}))
    kept = rows.read_parts(str(tmp_path), map_schema())
    assert sorted(kept["id"].to_pylist()) == ["a", "b", "c"]
    found = maps_from_table(kept)
    assert found.keys() == maps.keys()
    for id_, each in maps.items():
        assert np.array_equal(found[id_].grid_THW, each.grid_THW) and np.array_equal(found[id_].shares_L, each.shares_L)
