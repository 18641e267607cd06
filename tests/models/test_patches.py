"""Patches bitwise equal to transformers' processor's, from uint8 frames that lie one after the other."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2VLVideoProcessor

from rbft.errors import ModelError
from rbft.models.patches import PatchLayout, patchify
from tests.samples import random_clip

PROCESSOR = Qwen2VLVideoProcessor()
LAYOUT = PatchLayout.of(PROCESSOR)


def test_they_are_the_processors_bit_for_bit_for_clips_of_any_sizes() -> None:
    clips = [torch.from_numpy(random_clip(*size, seed=i).frames_THWC) for i, size in enumerate([(4, 56, 84), (2, 28, 28), (6, 140, 56)])]
    expected = PROCESSOR(videos=[clip.permute(0, 3, 1, 2) for clip in clips], do_resize=False, do_sample_frames=False, return_tensors="pt")
    grids = [LAYOUT.grid(clip) for clip in clips]
    assert [list(grid) for grid in grids] == expected["video_grid_thw"].tolist()
    ours = patchify(torch.cat([clip.flatten() for clip in clips]), grids, LAYOUT)
    assert torch.equal(ours, expected["pixel_values_videos"])


def test_an_odd_last_frame_is_repeated_as_the_processor_does() -> None:
    clip = torch.from_numpy(random_clip(3).frames_THWC)
    whole = LAYOUT.whole_patches(clip)
    expected = PROCESSOR(videos=[clip.permute(0, 3, 1, 2)], do_resize=False, do_sample_frames=False, return_tensors="pt")
    assert torch.equal(patchify(whole.flatten(), [LAYOUT.grid(whole)], LAYOUT), expected["pixel_values_videos"])


def test_frames_that_do_not_divide_into_tokens_are_refused() -> None:
    with pytest.raises(ModelError, match="4 frames of 56 x 70 do not divide into tokens of 2 frames of 28 x 28"):
        LAYOUT.grid(torch.zeros(4, 56, 70, 3, dtype=torch.uint8))


def test_a_processor_that_does_not_normalise_is_refused() -> None:
    with pytest.raises(ModelError, match="does not rescale and normalise"):
        PatchLayout.of(Qwen2VLVideoProcessor(do_normalize=False))
