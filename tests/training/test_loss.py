"""The summed loss against Hugging Face's mean one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rbft.models.batches import pack, pad
from rbft.models.chat import ChatAdapter
from rbft.models.load import load_model
from rbft.training.loss import SupervisedLoss, supervised_totals
from tests.samples import SPEC, TASK, random_clip


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model(tiny_model, "float32").eval()


@pytest.fixture(scope="module")
def adapter(tiny_model: Path) -> ChatAdapter:
    return ChatAdapter(tiny_model, SPEC)


def test_it_is_the_loss_of_transformers_times_the_number_of_tokens(model: Any, adapter: ChatAdapter) -> None:
    messages = TASK.question_messages()
    answers = ("normal", "a much longer answer")
    samples = [adapter.encode(random_clip(4 + 2 * i), messages, answer) for i, answer in enumerate(answers)]
    batch = adapter.collate(samples)
    num_tokens = sum(sample.num_supervised_tokens for sample in samples)
    with torch.inference_mode():
        ours = SupervisedLoss(model)(**batch)
        theirs = model(**batch).loss * num_tokens
    assert num_tokens == sum(len(answer) + 1 for answer in answers)  # one byte, one token
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5)


def test_each_token_has_its_samples_weight(model: Any, adapter: ChatAdapter) -> None:
    samples = [adapter.encode(random_clip(), TASK.question_messages(), answer, weight) for answer, weight in (("normal", 0.5), ("no", 2.0))]
    loss = SupervisedLoss(model, adapter.patches)
    with torch.inference_mode():
        alone = [loss(**adapter.collate([replace(sample, weight=1.0)])) for sample in samples]
        for batch in (adapter.collate(samples), pad(samples, adapter), pack(samples, adapter)):
            torch.testing.assert_close(loss(**batch), 0.5 * alone[0] + 2.0 * alone[1], rtol=1e-5, atol=1e-5)
            # "normal" and "no", a byte a token, and their ends
            assert supervised_totals(batch) == (7 + 3, 0.5 * 7 + 2.0 * 3)


def test_padding_and_samples_without_supervised_tokens_add_nothing(model: Any, adapter: ChatAdapter) -> None:
    messages = TASK.question_messages()
    supervised = adapter.encode(random_clip(seed=0), messages, "normal")
    longer = adapter.encode(random_clip(8, seed=1), messages)
    loss = SupervisedLoss(model)
    with torch.inference_mode():
        alone, beside = loss(**adapter.collate([supervised])), loss(**adapter.collate([supervised, longer]))
    torch.testing.assert_close(beside, alone, rtol=1e-6, atol=1e-5)


def test_a_batch_without_supervised_tokens_has_a_loss_of_zero_and_zero_gradients(tiny_model: Path, adapter: ChatAdapter) -> None:
    model = load_model(tiny_model, "float32")
    loss = SupervisedLoss(model)(**adapter.collate([adapter.encode(random_clip(), TASK.question_messages())]))
    loss.backward()
    assert float(loss.detach()) == 0.0
    gradients = [parameter.grad for parameter in model.parameters()]
    # Every parameter has one: ranks that wait for each other's gradients must all have the same.
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
