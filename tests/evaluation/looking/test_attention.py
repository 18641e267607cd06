"""What the hooks read against the attention matrices and gradients that transformers holds with eager attention, both families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rbft.errors import ModelError
from rbft.evaluation.looking.attention import AttentionReader
from rbft.models.chat import ChatAdapter
from rbft.models.load import load_model
from tests.samples import SPEC, TASK, random_clip
from tests.tiny_models import make_tiny_model

CLIPS = (random_clip(6, fps=0.9, seed=1), random_clip(4, 84, 56, seed=2), random_clip(5, 56, 56, seed=3))
MESSAGES = TASK.question_messages()
GRIDS = ((3, 2, 3), (2, 3, 2), (3, 2, 2))


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen2_vl", "grouped"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / request.param
    return grouped_model(path) if request.param == "grouped" else make_tiny_model(path, request.param)


def grouped_model(folder: Path) -> Path:
    """A tiny Qwen2.5-VL in which two heads share their keys and values, as in the published ones."""
    make_tiny_model(folder)
    model = load_model(folder, "float32")
    config = model.config
    config.text_config.num_key_value_heads = 1
    torch.manual_seed(1)
    grouped = type(model)(config)
    with torch.no_grad():
        for parameter in grouped.parameters():
            parameter.mul_(3.0 if parameter.ndim >= 2 else 1.0)
    grouped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(folder: Path) -> ChatAdapter:
    return ChatAdapter(folder, SPEC)


def eager(folder: Path, adapter: ChatAdapter, clip: Any, answer: str | None = None) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of each layer the last position's attention [H, L] and, with an answer, its gradient [H, L]."""
    model = load_model(folder, "float32", attention="eager").eval()
    inputs = adapter.prompt_inputs([adapter.encode(clip, MESSAGES)], model)
    output = model(**inputs, output_attentions=True, use_cache=False)
    if answer is not None:
        for attention in output.attentions:
            attention.retain_grad()
        output.logits[0, -1].log_softmax(dim=-1)[adapter.answer_ids(answer)[0]].backward()
    gradients = [attention.grad[0, :, -1] for attention in output.attentions] if answer is not None else []
    return [attention[0, :, -1].detach() for attention in output.attentions], gradients


def test_maps_are_those_of_eager_attention_also_in_a_padded_batch(folder: Path, adapter: ChatAdapter) -> None:
    for num_layers in (1, 2):
        maps = AttentionReader(load_model(folder, "float32"), adapter, num_layers).read([(clip, MESSAGES) for clip in CLIPS])
        for clip, attention, grid in zip(CLIPS, maps, GRIDS, strict=True):
            layers, _ = eager(folder, adapter, clip)
            expected = torch.stack(layers[-num_layers:]).mean(dim=(0, 1)).numpy()
            np.testing.assert_allclose(attention.shares_L, expected, atol=1e-5)
            is_video = (adapter.encode(clip, MESSAGES).input_ids_L == adapter.video_token_id).numpy()
            np.testing.assert_allclose(attention.grid_THW, expected[is_video].reshape(grid), atol=1e-5)
            assert attention.shares_L.std() > 1e-4, "attention of these weights is so flat that anything would equal it"


def test_attention_sums_to_one_and_what_is_on_the_video_is_a_part_of_it(folder: Path, adapter: ChatAdapter) -> None:
    for attention in AttentionReader(load_model(folder, "float32"), adapter).read([(clip, MESSAGES) for clip in CLIPS]):
        assert attention.shares_L.sum() == pytest.approx(1, abs=1e-5)
        assert 0 < attention.video_share < 1
        assert (attention.scaled_THW.min(), attention.scaled_THW.max()) == (0, 1)


def test_gradient_maps_are_the_positive_part_of_attention_times_its_gradient(folder: Path, adapter: ChatAdapter) -> None:
    reader = AttentionReader(load_model(folder, "float32"), adapter)
    maps = reader.read_gradient([(clip, MESSAGES, answer) for clip, answer in zip(CLIPS, ("normal", "abnormal", "normal"), strict=True)])
    for clip, answer, attention in zip(CLIPS, ("normal", "abnormal", "normal"), maps, strict=True):
        layers = zip(*eager(folder, adapter, clip, answer), strict=True)
        expected = torch.stack([(weights * gradient).clamp(min=0) for weights, gradient in layers]).mean(dim=(0, 1))
        np.testing.assert_allclose(attention.shares_L, (expected / expected.sum()).numpy(), atol=1e-5)
        assert attention.shares_L.sum() == pytest.approx(1, abs=1e-5)


def test_reading_leaves_no_hooks_and_no_gradients_behind(folder: Path, adapter: ChatAdapter) -> None:
    model = load_model(folder, "float32")
    reader = AttentionReader(model, adapter)
    first = reader.read([(CLIPS[0], MESSAGES)])[0]
    reader.read_gradient([(CLIPS[0], MESSAGES, "normal")])
    np.testing.assert_array_equal(reader.read([(CLIPS[0], MESSAGES)])[0].shares_L, first.shares_L)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_another_kind_of_model_is_refused(folder: Path, adapter: ChatAdapter) -> None:
    model = load_model(folder, "float32")
    model.config.model_type = "qwen3_vl"
    with pytest.raises(ModelError, match="qwen3_vl"):
        AttentionReader(model, adapter)
