"""Clips to the input of a video classifier: what a checkpoint's processor makes, and what is cut out at random."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoVideoProcessor

from rbft.baselines.clip_encoder import ClipEncoder, ClipForm, Cut, _random_part
from rbft.records import Clip
from rbft.video.sampling import fit_size, sample_times
from tests.baselines.classifiers import KINDS, NUM_FRAMES, SIZE, make_tiny_classifier
from tests.samples import random_clip


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folders = {kind: make_tiny_classifier(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}
    return {kind: AutoVideoProcessor.from_pretrained(folder) for kind, folder in folders.items()}


def encoder(processors: dict[str, Any], kind: str = "videomae", fit: Any = "crop") -> ClipEncoder:
    return ClipEncoder(processors[kind], ClipForm(NUM_FRAMES, SIZE, fit))


def grey(value: int, height: int = 40, width: int = 60) -> Clip:
    clip = random_clip(NUM_FRAMES, height, width)
    return replace(clip, frames_THWC=np.full_like(clip.frames_THWC, value))


@pytest.mark.parametrize(("kind", "mean", "std"), [("videomae", 0.485, 0.229), ("timesformer", 0.45, 0.225), ("vjepa2", 0.485, 0.229)])
def test_pixels_are_normalised_as_the_checkpoint_says(processors: dict[str, Any], kind: str, mean: float, std: float) -> None:
    red_THW = encoder(processors, kind).encode(grey(102))[:, 0]
    assert torch.allclose(red_THW, torch.full_like(red_THW, (0.4 - mean) / std), atol=1e-4)


def test_vivits_offset_is_kept(processors: dict[str, Any]) -> None:
    red_THW = encoder(processors, "vivit").encode(grey(255))[:, 0]
    assert torch.allclose(red_THW, torch.full_like(red_THW, 1.0), atol=1e-4)


def test_cropping_leaves_the_sides_out_and_stretching_does_not(processors: dict[str, Any]) -> None:
    clip = grey(0, height=32, width=96)
    clip.frames_THWC[:, :, :16] = 255
    black = encoder(processors).encode(grey(0))[0, 0, 0, 0]
    assert torch.allclose(encoder(processors).encode(clip)[:, 0], black, atol=1e-4)
    stretched_TCHW = encoder(processors, fit="stretch").encode(clip)
    assert stretched_TCHW.shape == (NUM_FRAMES, 3, SIZE, SIZE)
    assert (stretched_TCHW[:, 0, :, :4] > black + 1).all() and torch.allclose(stretched_TCHW[:, 0, :, 8:], black, atol=1e-4)


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_a_random_cut_is_a_function_of_its_seed(processors: dict[str, Any], fit: str) -> None:
    clip, of = random_clip(NUM_FRAMES, 40, 60), encoder(processors, fit=fit)
    cuts = [of.encode_cut(clip, seed, Cut()) for seed in (1, 1, 2)]
    assert cuts[0].shape == (NUM_FRAMES, 3, SIZE, SIZE)
    assert torch.equal(cuts[0], cuts[1]) and not torch.equal(cuts[0], cuts[2])


def test_all_frames_of_a_clip_are_cut_alike(processors: dict[str, Any]) -> None:
    clip = random_clip(NUM_FRAMES, 40, 60)
    clip.frames_THWC[:] = clip.frames_THWC[:1]
    cut_TCHW = encoder(processors).encode_cut(clip, 7, Cut())
    assert all(torch.equal(frame, cut_TCHW[0]) for frame in cut_TCHW)


def test_without_cropping_a_clip_is_as_in_prediction_or_its_mirror_image(processors: dict[str, Any]) -> None:
    clip, of = random_clip(NUM_FRAMES, 40, 60), encoder(processors)
    whole = of.encode(clip)
    assert torch.equal(of.encode_cut(clip, 3, Cut(crop=False, flip=False)), whole)
    found = [of.encode_cut(clip, seed, Cut(crop=False)) for seed in range(12)]
    is_mirrored = [torch.allclose(each, whole.flip(-1), atol=0.05) for each in found]
    assert all(mirrored or torch.equal(each, whole) for mirrored, each in zip(is_mirrored, found, strict=True))
    assert 0 < sum(is_mirrored) < 12


@given(st.integers(2, 3000), st.integers(2, 3000), st.sampled_from(["crop", "stretch"]), st.integers(0, 1000))
def test_a_random_part_lies_inside_the_frame(height: int, width: int, fit: str, seed: int) -> None:
    top, left, part_height, part_width = _random_part(height, width, fit, 0.08, np.random.default_rng(seed))
    assert 0 <= top <= top + part_height <= height and 0 <= left <= left + part_width <= width
    assert part_height > 0 and part_width > 0


@given(st.integers(64, 2160), st.integers(64, 3840), st.floats(0.2, 4000))
def test_the_frames_that_are_decoded_are_as_many_as_asked_for_and_large_enough(height: int, width: int, duration_s: float) -> None:
    class Processor:
        size = {"shortest_edge": 256}  # noqa: RUF012

    spec = ClipEncoder(Processor(), ClipForm(16, 224)).video_spec()
    times = sample_times(duration_s, None, None, spec)
    assert len(times.times_s) == 16 and not times.is_capped
    assert np.diff(times.times_s) == pytest.approx([duration_s / 16] * 15)
    if max(height, width) / min(height, width) <= 2.3:
        assert min(fit_size(height, width, spec)) >= min(256, min(height, width) - 1) - 2


def test_the_cut_keeps_at_least_half_of_a_frame_of_its_aspect() -> None:
    areas = [np.prod(_random_part(480, 640, "stretch", 0.5, np.random.default_rng(seed))[2:]) / (480 * 640) for seed in range(200)]
    assert min(areas) > 0.45 and max(areas) > 0.9


def counted(form: ClipForm, height: int = 40, width: int = 60) -> Clip:
    """Frame i is of the grey 4 i: what is seen says which frame it was."""
    clip = random_clip(form.num_frames * form.density, height, width)
    grey_T = np.arange(len(clip.frames_THWC), dtype=np.uint8) * 4
    return replace(clip, frames_THWC=np.broadcast_to(grey_T[:, None, None, None], clip.frames_THWC.shape).copy())


def frame_numbers(pixels_TCHW: torch.Tensor) -> list[int]:
    return [round(float((frame[0].mean() * 0.229 + 0.485) * 255 / 4)) for frame in pixels_TCHW]


def test_the_clips_of_a_video_lie_between_one_another(processors: dict[str, Any]) -> None:
    form = ClipForm(NUM_FRAMES, SIZE, num_clips=3)
    of = ClipEncoder(processors["videomae"], form)
    assert of.video_spec().max_frames == 4 * NUM_FRAMES
    views = of.views(counted(form))
    assert [frame_numbers(view) for view in views] == [[1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]
    assert torch.equal(of.encode(counted(form)), views[1])


def test_in_training_a_frame_is_drawn_in_each_interval(processors: dict[str, Any]) -> None:
    form = ClipForm(NUM_FRAMES, SIZE, num_clips=3)
    of, clip = ClipEncoder(processors["videomae"], form), counted(form)
    drawn = [frame_numbers(of.encode_cut(clip, seed, Cut())) for seed in range(20)]
    assert all(4 * interval <= number < 4 * interval + 4 for numbers in drawn for interval, number in enumerate(numbers))
    assert {number - 4 * interval for numbers in drawn for interval, number in enumerate(numbers)} == {0, 1, 2, 3}


@pytest.mark.parametrize("is_tall", [False, True])
def test_three_crops_are_both_ends_and_the_middle_of_the_longer_side(processors: dict[str, Any], is_tall: bool) -> None:
    clip = grey(0, *((96, 32) if is_tall else (32, 96)))
    for number in range(3):
        part = slice(32 * number, 32 * number + 32)
        clip.frames_THWC[:, part if is_tall else slice(None), slice(None) if is_tall else part] = 100 * number
    views = encoder(processors).views(clip, num_crops=3)
    assert views.shape == (3, NUM_FRAMES, 3, SIZE, SIZE)
    seen = [round(float((view[:, 0].mean() * 0.229 + 0.485) * 255)) for view in views]
    assert seen == [0, 100, 200]


@pytest.mark.parametrize("cut", [Cut(augment=4), Cut(erase=1.0), Cut(crop=False, augment=2, erase=0.5, least_area=0.08)])
def test_augmented_clips_are_functions_of_their_seed(processors: dict[str, Any], cut: Cut) -> None:
    clip, of = random_clip(NUM_FRAMES, 40, 60), encoder(processors)
    cuts = [of.encode_cut(clip, seed, cut) for seed in (1, 1, 2)]
    assert torch.equal(cuts[0], cuts[1]) and not torch.equal(cuts[0], cuts[2]) and cuts[0].isfinite().all()


def test_a_folder_is_named_by_nothing_but_its_form(tmp_path: Path) -> None:
    assert ClipForm(**ClipForm(16, 224, "stretch").as_dict()) == ClipForm(16, 224, "stretch")
