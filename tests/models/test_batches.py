"""Packed and padded micro-batches: each sample in them is what it is alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rbft.models.batches import pack, pad, to_device
from rbft.models.chat import IGNORE_INDEX, ChatAdapter, EncodedSample
from rbft.models.load import load_model
from tests.samples import SPEC, TASK, random_clip


@pytest.fixture(scope="module")
def adapter(model_folder: Path) -> ChatAdapter:
    return ChatAdapter(model_folder, SPEC)


@pytest.fixture(scope="module")
def samples(adapter: ChatAdapter) -> list[EncodedSample]:
    clips = [random_clip(4, 56, 84), random_clip(20, 56, 28, 0.9, 1), random_clip(6, 28, 56, 0.5, 2)]
    return [
        adapter.encode(clip, TASK.question_messages(), answer) for clip, answer in zip(clips, ("normal", "abnormal", "no"), strict=True)
    ]


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Any:
    return load_model(model_folder, "float32")


def positions_alone(model: Any, adapter: ChatAdapter, sample: EncodedSample) -> torch.Tensor:
    """[3, L] as the model works them out itself."""
    batch = adapter.collate([sample])
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "attention_mask", "second_per_grid_ts")
    positions: torch.Tensor = model.model.get_rope_index(**{name: batch[name] for name in names if name in batch})[0]
    return positions[:, 0]


def test_each_sample_of_a_pack_has_the_tokens_labels_and_positions_it_has_alone(
    model: Any, adapter: ChatAdapter, samples: list[EncodedSample]
) -> None:
    batch = pack(samples, adapter)
    ends = batch["cu_seq_lens_q"].tolist()
    assert ends == [0, *torch.tensor([len(sample.input_ids_L) for sample in samples]).cumsum(0).tolist()]
    assert batch["input_ids"].shape == batch["labels"].shape == (1, ends[-1])
    assert batch["max_length_q"] == max(len(sample.input_ids_L) for sample in samples)
    for sample, start, end in zip(samples, ends, ends[1:], strict=False):
        assert torch.equal(batch["input_ids"][0, start:end], sample.input_ids_L)
        assert torch.equal(batch["labels"][0, start:end], sample.labels_L)
        assert batch["position_ids"][0, 0, start:end].tolist() == list(range(end - start))
        assert torch.equal(batch["position_ids"][1:, 0, start:end], positions_alone(model, adapter, sample))
    frames = torch.cat([sample.frames_THWC.flatten() for sample in samples])
    assert batch["frames"].dtype == torch.uint8 and torch.equal(batch["frames"], frames)


def test_each_row_of_a_padded_batch_has_the_positions_it_has_alone(model: Any, adapter: ChatAdapter, samples: list[EncodedSample]) -> None:
    batch, plain = pad(samples, adapter), adapter.collate(samples)
    assert all(torch.equal(batch[name], plain[name]) for name in ("input_ids", "attention_mask", "labels", "video_grid_thw"))
    for row, sample in enumerate(samples):
        alone = positions_alone(model, adapter, sample)
        assert torch.equal(batch["position_ids"][:, row, : alone.shape[1]], alone)


def test_no_token_is_predicted_from_another_sample(adapter: ChatAdapter, samples: list[EncodedSample]) -> None:
    """Even if a sample's first token were supervised."""
    for sample in samples:
        sample.labels_L[0] = sample.input_ids_L[0]
    try:
        batch = pack(samples, adapter)
    finally:
        for sample in samples:
            sample.labels_L[0] = IGNORE_INDEX
    assert (batch["labels"][0, batch["cu_seq_lens_q"][:-1].long()] == IGNORE_INDEX).all()
    assert int((batch["labels"] != IGNORE_INDEX).sum()) == sum(sample.num_supervised_tokens for sample in samples)


@pytest.mark.parametrize("join", [pack, pad])
def test_weights_are_there_when_a_sample_has_one(adapter: ChatAdapter, samples: list[EncodedSample], join: Any) -> None:
    assert "token_weights" not in join(samples, adapter)
    weighted = adapter.encode(random_clip(), TASK.question_messages(), "normal", weight=2.5)
    batch = join([samples[0], weighted], adapter)
    supervised = batch["labels"] != IGNORE_INDEX
    expected = [1.0] * samples[0].num_supervised_tokens + [2.5] * weighted.num_supervised_tokens
    assert batch["token_weights"][supervised].tolist() == expected


def test_the_grid_stays_on_the_host_and_all_other_tensors_travel(adapter: ChatAdapter, samples: list[EncodedSample]) -> None:
    moved = to_device(pack(samples, adapter), "meta")
    on_host = [name for name, value in moved.items() if isinstance(value, torch.Tensor) and value.device.type != "meta"]
    assert on_host == ["video_grid_thw"]
