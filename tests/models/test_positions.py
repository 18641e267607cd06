"""3-D positions against numbers worked out by hand and against transformers' own, from which they differ on purpose.

That they are vLLM's is held in test_chat.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from rbft.models.chat import ChatAdapter
from rbft.models.load import load_model
from rbft.models.positions import rope_index
from rbft.records import Clip
from tests.samples import SPEC, TASK, random_clip
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "qwen2_5_vl")


def ours_and_theirs(folder: Path, clip: Clip) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positions and deltas by `load_model`'s model and by transformers' own."""
    adapter = ChatAdapter(folder, SPEC)
    batch = adapter.collate([adapter.encode(clip, TASK.question_messages(), "normal")])
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "attention_mask", "second_per_grid_ts")
    inputs: dict[str, Any] = {name: batch[name] for name in names}
    plain = AutoModelForImageTextToText.from_pretrained(folder)
    return *load_model(folder, "float32").model.get_rope_index(**inputs), *plain.model.get_rope_index(**inputs)


def test_text_video_and_text_stand_where_the_reference_puts_them() -> None:
    is_video = [0, 0, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0]
    positions_3BL, delta = rope_index(
        torch.zeros(1, 12, dtype=torch.long),
        torch.tensor([is_video]),
        video_grid_thw=torch.tensor([[2, 4, 4]]),
        second_per_grid_ts=torch.tensor([2.0]),
        merge_size=2,
        tokens_per_second=2.0,
    )
    assert positions_3BL[:, 0].tolist() == [
        [0, 1, 2, 2, 2, 2, 6, 6, 6, 6, 7, 8],
        [0, 1, 2, 2, 3, 3, 2, 2, 3, 3, 7, 8],
        [0, 1, 2, 3, 2, 3, 2, 3, 2, 3, 7, 8],
    ]
    assert delta.tolist() == [[9 - 12]]


def test_they_are_transformers_own_where_a_clip_is_wider_than_it_is_long(model_folder: Path) -> None:
    ours, our_delta, theirs, their_delta = ours_and_theirs(model_folder, random_clip(4, 28, 224))
    assert torch.equal(ours, theirs)
    assert torch.equal(our_delta, their_delta)


def test_transformers_lets_text_begin_inside_a_longer_clip_and_we_do_not(model_folder: Path) -> None:
    """If this fails, transformers has been mended: `use_reference_positions` may go."""
    ours, _, theirs, _ = ours_and_theirs(model_folder, random_clip(8, 56, 56))
    first, last = int((ours[0, 0] != torch.arange(ours.shape[2])).nonzero()[0]), -1
    assert torch.equal(ours[..., :first], theirs[..., :first])
    # Four temporal patches, 4 apart, against a merged grid of 2 x 2: the text goes on after 12, or after 1.
    assert (ours[..., last] - theirs[..., last]).unique().tolist() == [12 - 1]


def test_images_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="videos only"):
        rope_index(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 3), merge_size=2, tokens_per_second=None)
