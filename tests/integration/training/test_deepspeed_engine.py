"""One optimiser step, held against plain PyTorch, however it is spread over workers, micro-batches and ZeRO's partitions."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rbft.models.chat import ChatAdapter
from rbft.models.load import load_model
from rbft.video.pool import DecodePool
from tests.training.stages import OPTIMISER, VIDEO, make_items, make_training, many_steps
from tests.training.workers import run_workers

Steps = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def steps(tiny_model: Path, videos: list[Path]) -> Steps:
    """Case -> what each rank found. All of them take one step on the same four items, those of "filled" on one and three fillers."""
    items = make_items(videos)[:4]
    filled = [items[1], None, None, None]
    weighted = [replace(item, weight=weight) for item, weight in zip(items, WEIGHTS, strict=True)]
    alone = {
        "1 worker x batch 4": (make_training(1, 4), items),
        "1 worker, accumulation 2": (make_training(1, 2), items),
        "padded": (make_training(1, 4, batching="padded"), items),
        "padded, checkpointing off": (make_training(1, 4, batching="padded", gradient_checkpointing=False), items),
        "filled, 1 worker": (make_training(1, 4), filled),
        "weighted, 1 worker": (make_training(1, 4), weighted),
    }
    together = {
        "2 workers x batch 2": (make_training(2, 2), items),
        "2 workers, accumulation 2": (make_training(2, 1), items),
        "gradient checkpointing off": (make_training(2, 2, gradient_checkpointing=False), items),
        "padded, 2 workers, accumulation 2": (make_training(2, 1, batching="padded"), items),
        "filled, 2 workers": (make_training(2, 2), filled),
        "weighted, 2 workers": (make_training(2, 1), weighted),
        "not a number": (make_training(2, 1), [replace(items[0], weight=math.nan), *items[1:]]),
        "ZeRO-0": (make_training(2, 2, zero_stage=0), items),
        "ZeRO-1": (make_training(2, 2, zero_stage=1), items),
        "ZeRO-3": (make_training(2, 2, zero_stage=3), items),
    }
    found: Steps = {}
    for num_workers, cases in ((1, alone), (2, together)):
        ranks = run_workers(many_steps, num_workers, tiny_model, cases)
        found |= {case: [rank[case] for rank in ranks] for case in cases}
    return found


WEIGHTS = (1.0, 0.25, 3.0, 1.0)
"""Of the four items' tokens where they are weighted."""

CASES = (
    *("1 worker x batch 4", "1 worker, accumulation 2", "2 workers x batch 2", "2 workers, accumulation 2"),
    *("padded", "padded, checkpointing off", "padded, 2 workers, accumulation 2"),
    *("gradient checkpointing off", "ZeRO-0", "ZeRO-1", "ZeRO-3"),
)


@pytest.fixture(scope="module")
def plain(tiny_model: Path, videos: list[Path]) -> dict[str, Any]:
    """Loss and gradients of the same four items by PyTorch alone, one item after the other."""
    return plain_step(tiny_model, videos, (1.0,) * 4)


@pytest.fixture(scope="module")
def plain_weighted(tiny_model: Path, videos: list[Path]) -> dict[str, Any]:
    return plain_step(tiny_model, videos, WEIGHTS)


def plain_step(tiny_model: Path, videos: list[Path], weights: tuple[float, ...]) -> dict[str, Any]:
    adapter = ChatAdapter(tiny_model, VIDEO.spec())
    model = load_model(tiny_model, "float32").train()
    items = make_items(videos)[:4]
    with DecodePool(1) as pool:
        samples = [adapter.encode(pool.decode(item.example.uri, adapter.spec), item.messages, item.answer) for item in items]
    num_tokens = sum(sample.num_supervised_tokens for sample in samples)
    total = sum(weight * sample.num_supervised_tokens for weight, sample in zip(weights, samples, strict=True))
    loss = torch.zeros(())
    for weight, sample in zip(weights, samples, strict=True):
        batch = adapter.collate([sample])
        logits_LV = model(**{name: value for name, value in batch.items() if name != "labels"}).logits[0, :-1]
        loss = loss + torch.nn.functional.cross_entropy(logits_LV, batch["labels"][0, 1:], reduction="sum") * weight / total
    loss.backward()
    return {
        "loss": float(loss.detach()),
        "num_tokens": num_tokens,
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
    }


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_token_mean_over_the_global_batch(steps: Steps, plain: dict[str, Any], case: str) -> None:
    assert max(float(gradient.abs().max()) for gradient in plain["gradients"].values()) > 0.05
    for rank in steps[case]:
        assert rank["loss"] == pytest.approx(plain["loss"], abs=1e-5)
        assert rank["num_tokens"] == plain["num_tokens"]
        torch.testing.assert_close(rank["gradients"], plain["gradients"], rtol=1e-5, atol=1e-5)


def test_the_ranks_had_different_numbers_of_tokens(steps: Steps) -> None:
    first, second = (rank["num_tokens_here"] for rank in steps["2 workers x batch 2"])
    assert first != second


def test_fillers_of_a_last_batch_add_nothing(steps: Steps) -> None:
    (alone,), together = steps["filled, 1 worker"], steps["filled, 2 workers"]
    assert [rank["num_tokens_here"] for rank in together] == [alone["num_tokens"], 0]
    for rank in together:
        assert rank["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        torch.testing.assert_close(rank["gradients"], alone["gradients"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["weighted, 1 worker", "weighted, 2 workers"])
def test_weighted_tokens_give_the_weighted_mean(steps: Steps, plain: dict[str, Any], plain_weighted: dict[str, Any], case: str) -> None:
    assert abs(plain_weighted["loss"] - plain["loss"]) > 0.01
    for rank in steps[case]:
        assert rank["loss"] == pytest.approx(plain_weighted["loss"], abs=1e-5)
        assert rank["num_tokens"] == plain["num_tokens"]
        torch.testing.assert_close(rank["gradients"], plain_weighted["gradients"], rtol=1e-5, atol=1e-5)


def test_a_loss_that_is_no_number_on_one_rank_is_known_to_both_before_the_weights_change(steps: Steps, tiny_model: Path) -> None:
    before = dict(load_model(tiny_model, "float32").named_parameters())
    assert [rank["is_finite"] for rank in steps["not a number"]] == [False, False]
    writer = steps["not a number"][0]["weights"]
    assert all(torch.equal(writer[name], weight) for name, weight in before.items())
    assert all(rank["is_finite"] for case in CASES for rank in steps[case])


def test_flags_are_the_largest_of_all_ranks(steps: Steps) -> None:
    assert [rank["flags"] for rank in steps["2 workers x batch 2"]] == [(1.0, 0.5)] * 2
    assert [rank["flags"] for rank in steps["1 worker x batch 4"]] == [(0.0, 0.5)]


@pytest.mark.parametrize("case", CASES[1:])
def test_the_weights_after_a_step_are_the_same(steps: Steps, plain: dict[str, Any], case: str) -> None:
    expected = steps["1 worker x batch 4"][0]["weights"]
    writer, *others = (rank["weights"] for rank in steps[case])
    assert writer.keys() == expected.keys() == plain["gradients"].keys()
    assert others == [None] * len(others)
    for name, weight in expected.items():
        # Adam divides by the gradient's own size, so a gradient of almost nothing may go either way, by one learning rate at most.
        assert float((writer[name] - weight).abs().max()) <= 2e-3, name
        assert float((writer[name] - weight).abs().mean()) < 1e-5, name


@pytest.mark.parametrize("case", ["1 worker x batch 4", "2 workers x batch 2", "ZeRO-0", "ZeRO-1", "ZeRO-3"])
def test_the_engine_holds_both_learning_rates_and_spares_norms_and_biases_from_decay(steps: Steps, case: str) -> None:
    for rank in steps[case]:
        assert rank["groups"] == {
            "language": (OPTIMISER.lr_language, OPTIMISER.weight_decay),
            "language_no_decay": (OPTIMISER.lr_language, 0.0),
            "vision": (OPTIMISER.lr_vision, OPTIMISER.weight_decay),
            "vision_no_decay": (OPTIMISER.lr_vision, 0.0),
        }
        assert rank["rates"] == {f"lr_{name}": rate for name, (rate, _) in rank["groups"].items()}
