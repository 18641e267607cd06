"""What a step is said to take, held against what is in it."""

from __future__ import annotations

import time

import pytest
import torch

from rbft.models.flops import model_flops
from rbft.models.load import load_model
from rbft.training.feed import StepBatch
from rbft.training.meter import NUM_STEPS, Meter, sample_sizes
from tests.tiny_models import make_tiny_model
from tests.training.workers import run_workers

# Two samples of 3 and 5 tokens, of which 1 and 2 are supervised; the second row of the padded form ends in nothing.
PADDED = {
    "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
    "labels": torch.tensor([[-100, -100, 7, -100, -100], [-100, -100, -100, 7, 8]]),
    "video_grid_thw": torch.tensor([[1, 2, 2], [2, 4, 2]]),
}
PACKED = {
    "cu_seq_lens_q": torch.tensor([0, 3, 8], dtype=torch.int32),
    "labels": torch.tensor([[-100, -100, 7, -100, -100, -100, 7, 8]]),
    "video_grid_thw": PADDED["video_grid_thw"],
}


def test_samples_have_the_same_size_however_they_are_laid_out() -> None:
    padded, packed = sample_sizes(PADDED), sample_sizes(PACKED)
    assert padded == packed
    assert [(size.num_tokens, size.num_supervised, size.grid_thw) for size in padded] == [(3, 1, (1, 2, 2)), (5, 2, (2, 4, 2))]


def measured(model: str, num_steps: int) -> list[dict[str, float]]:
    """The scalars of steps of about 20 ms on rank 0 and twice that on rank 1, with a filler beside two samples."""
    filler = {"attention_mask": torch.ones(1, 2), "labels": torch.full((1, 2), -100), "video_grid_thw": torch.tensor([[1, 2, 2]])}
    batch = StepBatch([PADDED, filler], ["a", "b"], waited_s=0.01 * (1 + torch.distributed.get_rank()))
    meter = Meter(model_flops(load_model(model, "float32")), torch.device("cpu"), "bf16")
    found = []
    for _ in range(num_steps):
        meter.start()
        time.sleep(0.01 * (1 + torch.distributed.get_rank()))
        found.append(meter.measure(batch))
    return found


def test_rates_are_of_all_ranks_together_and_of_the_slowest_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = make_tiny_model(tmp_path_factory.mktemp("meter"))
    first, second = run_workers(measured, 2, str(folder), NUM_STEPS + 3)
    assert first == second
    flops = model_flops(load_model(folder, "float32"))
    of_batch = sum(flops.of_sample(size.num_tokens, size.num_supervised, size.grid_thw) for size in sample_sizes(PADDED))
    for line in (first[0], first[-1]):
        assert line["step_s"] >= 0.04  # rank 1 waits 20 ms for its batch and works 20 ms
        # Whatever the steps took, what was in them is known: four samples, 16 tokens, 6 of them supervised; fillers are no samples.
        assert line["tokens_per_s"] / line["samples_per_s"] == pytest.approx(16 / 4)
        assert line["supervised_tokens_per_s"] / line["samples_per_s"] == pytest.approx(6 / 4)
        assert line["tflops_per_s"] * 1e12 / line["samples_per_s"] == pytest.approx(2 * of_batch / 4 / 2)  # a device, of two
        assert 0.1 < line["data_wait_share"] <= 0.5
        assert line["memory_bytes"] > 1e6
        assert "mfu" not in line, "a CPU's peak is not known"
    assert first[0]["samples_per_s"] == pytest.approx(4 / first[0]["step_s"])
    assert first[-1]["data_wait_share"] == pytest.approx(0.02 * NUM_STEPS / sum(line["step_s"] for line in first[-NUM_STEPS:]))
