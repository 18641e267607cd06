"""The last layer where a token is predicted alone, against the whole of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rbft.models.attention import use_segments
from rbft.models.batches import MicroBatch, pack, pad
from rbft.models.chat import IGNORE_INDEX, ChatAdapter, EncodedSample
from rbft.models.last_layer import is_narrow, last_layer, narrow_last_layer
from rbft.models.load import load_model
from rbft.training.loss import SupervisedLoss
from tests.samples import SPEC, TASK, random_clip


@pytest.fixture(scope="module")
def adapter(model_folder: Path) -> ChatAdapter:
    return ChatAdapter(model_folder, SPEC)


@pytest.fixture(scope="module")
def samples(adapter: ChatAdapter) -> list[EncodedSample]:
    clips = [random_clip(4, 56, 84), random_clip(8, 84, 84, 0.9, 1)]
    answers = ["normal", "Scene: a yard.\nMotion: a dog runs."]
    return [adapter.encode(clip, TASK.question_messages(), answer) for clip, answer in zip(clips, answers, strict=True)]


def load(folder: Path) -> Any:
    model = load_model(folder, "float32")
    use_segments(model, packed=True)
    return model.train()


def loss_and_gradients(model: Any, adapter: ChatAdapter, batch: MicroBatch) -> tuple[float, list[torch.Tensor | None]]:
    model.zero_grad()
    loss = SupervisedLoss(model, adapter.patches)(**batch)
    loss.backward()
    return float(loss.detach()), [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("join", [pack, pad])
def test_loss_and_gradients_are_those_of_the_whole_layer(
    model_folder: Path, adapter: ChatAdapter, samples: list[EncodedSample], join: Callable[..., MicroBatch], checkpointing: bool
) -> None:
    model, batch = load(model_folder), join(samples, adapter)
    expected = loss_and_gradients(model, adapter, batch)
    narrow_last_layer(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss, gradients = loss_and_gradients(model, adapter, batch)
    assert is_narrow(model)
    assert loss == pytest.approx(expected[0], rel=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in expected[1] if gradient is not None)
    torch.testing.assert_close(gradients, expected[1], rtol=1e-4, atol=1e-6 * largest)


def test_its_mlp_sees_as_many_positions_as_tokens_are_predicted(
    model_folder: Path, adapter: ChatAdapter, samples: list[EncodedSample]
) -> None:
    model = load(model_folder)
    narrow_last_layer(model)
    seen: list[int] = []
    last_layer(model).mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:-1].numel()))
    SupervisedLoss(model, adapter.patches)(**pack(samples, adapter))
    assert seen == [sum(sample.num_supervised_tokens for sample in samples)]


def test_a_batch_that_teaches_nothing_has_no_loss_and_no_gradient(
    model_folder: Path, adapter: ChatAdapter, samples: list[EncodedSample]
) -> None:
    model, batch = load(model_folder), pack(samples, adapter)
    narrow_last_layer(model)
    loss, gradients = loss_and_gradients(model, adapter, {**batch, "labels": torch.full_like(batch["labels"], IGNORE_INDEX)})
    assert loss == 0.0
    assert all(gradient is None or not gradient.any() for gradient in gradients)


def test_without_positions_it_is_as_it_was(model_folder: Path, adapter: ChatAdapter, samples: list[EncodedSample]) -> None:
    """As validation asks the model, for label likelihoods."""
    model, batch = load(model_folder).eval(), adapter.collate(samples)
    del batch["labels"]
    with torch.inference_mode():
        expected = model.model(**batch).last_hidden_state
        narrow_last_layer(model)
        torch.testing.assert_close(model.model(**batch).last_hidden_state, expected, rtol=0, atol=0)
