"""Attention in segments against a mask of n x n, and in the models against transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from rbft.models.attention import NO_MASK, attend_in_segments, attends_packed, reference_attention, use_segments
from rbft.models.batches import pack, pad
from rbft.models.chat import ChatAdapter, EncodedSample
from rbft.models.load import load_model
from rbft.training.loss import SupervisedLoss
from tests.samples import SPEC, TASK, random_clip


@pytest.fixture(scope="module")
def adapter(model_folder: Path) -> ChatAdapter:
    return ChatAdapter(model_folder, SPEC)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Any:
    model = load_model(model_folder, "float32")
    use_segments(model, packed=True)
    return model


@pytest.fixture(scope="module")
def samples(adapter: ChatAdapter) -> list[EncodedSample]:
    """Of different clips (windows of 56 pixels: whole ones, cut ones, and one of two tokens), prompts and answers."""
    clips = [random_clip(4, 56, 84), random_clip(8, 84, 84, 0.9, 1), random_clip(6, 28, 56, 0.5, 2)]
    messages = [TASK.question_messages(), TASK.rationale_messages(), TASK.question_messages("Camera 3.")]
    answers = ["normal", "Scene: a yard.\nMotion: a dog runs.", "abnormal"]
    return [adapter.encode(*each) for each in zip(clips, messages, answers, strict=True)]


def rows_of(values: torch.Tensor, samples: list[EncodedSample]) -> list[torch.Tensor]:
    """A packed row [1, L, ...] cut into its samples."""
    return list(values[0].split([len(sample.input_ids_L) for sample in samples]))


def hidden_states(model: Any, adapter: ChatAdapter, samples: list[EncodedSample]) -> torch.Tensor:
    """Last hidden states [1, L, H] of the packed row, as the loss computes them."""
    batch = pack(samples, adapter)
    pixels = adapter.pixel_values(samples)
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "frames")}
    return model.model(**inputs, pixel_values_videos=pixels, attention_mask=NO_MASK, use_cache=False).last_hidden_state


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.booleans(), st.sampled_from([1, 2, 4]))
def test_it_is_attention_under_a_block_diagonal_mask(lengths: list[int], is_causal: bool, num_key_heads: int) -> None:
    torch.manual_seed(0)
    total = sum(lengths)
    q, k, v = (torch.randn(total, heads, 8, requires_grad=True) for heads in (4, num_key_heads, num_key_heads))
    boundaries = torch.tensor([0, *lengths]).cumsum(0).int()
    ours = attend_in_segments(q, k, v, boundaries, max(lengths), is_causal, 0.3)
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = segment[:, None] == segment[None, :]
    if is_causal:
        mask &= torch.ones(total, total, dtype=torch.bool).tril()
    by_heads = [x.transpose(0, 1) for x in (q, k, v)]
    plain = scaled_dot_product_attention(by_heads[0], by_heads[1], by_heads[2], attn_mask=mask, scale=0.3, enable_gqa=True).transpose(0, 1)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(ours)
    for mine, theirs in zip(
        torch.autograd.grad((ours * weights).sum(), (q, k, v)), torch.autograd.grad((plain * weights).sum(), (q, k, v)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_vision_tower_gives_what_transformers_gives_by_eager_and_by_sdpa(
    model: Any, adapter: ChatAdapter, samples: list[EncodedSample]
) -> None:
    grids = torch.stack([sample.grid_thw for sample in samples])
    pixels = adapter.pixel_values(samples)
    with torch.inference_mode():
        ours = model.model.visual(pixels, grid_thw=grids).pooler_output
        for implementation in ("eager", "sdpa"):
            with reference_attention(model, implementation):
                torch.testing.assert_close(model.model.visual(pixels, grid_thw=grids).pooler_output, ours, rtol=1e-5, atol=1e-5)


def test_windows_of_equal_size_go_in_one_call(model: Any, adapter: ChatAdapter) -> None:
    """A clip of many pairs of frames of 84 x 84: windows of four sizes in Qwen2.5-VL, and as many calls however long it is."""
    calls = []
    for num_frames in (2, 16):
        sample = adapter.encode(random_clip(num_frames, 84, 84), TASK.question_messages())
        with (
            torch.inference_mode(),
            mock.patch("rbft.models.attention.scaled_dot_product_attention", wraps=scaled_dot_product_attention) as attend,
        ):
            model.model.visual(adapter.pixel_values([sample]), grid_thw=sample.grid_thw[None])
        calls.append(attend.call_count)
    assert calls[0] == calls[1] <= 2 * 3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_another_sample_of_the_row_holds_changes_nothing(
    model: Any, adapter: ChatAdapter, samples: list[EncodedSample], checkpointing: bool
) -> None:
    """Its clip, its words, or that it is there at all."""
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        other_clip = random_clip(8, 84, 84, 0.9, seed=9)
        perturbed = [samples[0], adapter.encode(other_clip, TASK.rationale_messages(), "Scene: a shop.\nMotion: a man sits."), samples[2]]
        assert len(perturbed[1].input_ids_L) == len(samples[1].input_ids_L)
        together, changed = (rows_of(hidden_states(model, adapter, row), row) for row in (samples, perturbed))
        for index in (0, 2):
            torch.testing.assert_close(changed[index], together[index], rtol=0, atol=1e-5)
            alone = hidden_states(model, adapter, [samples[index]])[0]
            torch.testing.assert_close(together[index], alone, rtol=0, atol=1e-5)
        assert float((changed[1] - together[1]).detach().abs().max()) > 0.1
        # Nor does what is learned from one depend on another that teaches nothing.
        loss, gradients = SupervisedLoss(model, adapter.patches), []
        for row in ([samples[0]], [samples[0], adapter.encode(other_clip, TASK.rationale_messages())]):
            model.zero_grad()
            loss(**pack(row, adapter)).backward()
            gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    finally:
        model.gradient_checkpointing_disable()
        model.eval()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_padded_rows_by_transformers(
    model: Any, adapter: ChatAdapter, samples: list[EncodedSample], checkpointing: bool
) -> None:
    loss = SupervisedLoss(model, adapter.patches)

    def gradients(batch: dict[str, Any]) -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        total = loss(**batch)
        total.backward()
        return float(total.detach()), [parameter.grad.clone() for parameter in model.parameters()]

    with reference_attention(model):
        expected = gradients(adapter.collate(samples))
        assert not attends_packed(model)
        found = [gradients(pad(samples, adapter)), gradients(pack(samples, adapter))]  # transformers masks packed rows by itself
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found += [gradients(pack(samples, adapter)), gradients(pad(samples, adapter))]
    model.gradient_checkpointing_disable()
    model.eval()
    largest = max(float(gradient.abs().max()) for gradient in expected[1])
    for value, of_parameters in found:
        assert value == pytest.approx(expected[0], rel=1e-6)
        torch.testing.assert_close(of_parameters, expected[1], rtol=1e-4, atol=1e-6 * largest)


def test_no_mask_is_made_for_a_packed_row(model: Any, adapter: ChatAdapter, samples: list[EncodedSample]) -> None:
    with torch.inference_mode(), mock.patch("transformers.masking_utils.sdpa_mask", side_effect=AssertionError("a mask was made")):
        SupervisedLoss(model, adapter.patches)(**pack(samples, adapter))
