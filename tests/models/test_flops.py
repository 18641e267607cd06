"""FLOPs of a sample, held against PyTorch's own count of what a real forward and backward compute."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

from rbft.models.chat import ChatAdapter
from rbft.models.flops import model_flops, peak_flops
from rbft.models.last_layer import narrow_last_layer
from rbft.models.load import load_model
from rbft.training.loss import SupervisedLoss
from tests.samples import SPEC, TASK, random_clip
from tests.tiny_models import Kind, make_tiny_model


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen2_vl"])
@pytest.mark.parametrize("frozen", ["nothing", "vision tower", "language model"])
def test_the_count_is_pytorchs_own(tmp_path: Path, kind: Kind, frozen: str) -> None:
    folder = make_tiny_model(tmp_path / kind, kind)
    model = load_model(folder, "float32", "eager").train()
    narrow_last_layer(model)
    for name, parameter in model.named_parameters():
        is_vision = "visual." in name
        parameter.requires_grad = frozen == "nothing" or is_vision != (frozen == "vision tower")
    # 6 x 10 patches a frame: windows of 4 x 4 that are cut at both edges.
    clip = random_clip(num_frames=6, height=84, width=140)
    adapter = ChatAdapter(folder, SPEC)
    sample = adapter.encode(clip, TASK.question_messages(), "abnormal")
    with FlopCounterMode(display=False) as counter:
        SupervisedLoss(model)(**adapter.collate([sample])).backward()
    flops = model_flops(model)
    grid = sample.grid_thw.tolist()
    counted = flops.of_sample(len(sample.input_ids_L), sample.num_supervised_tokens, (grid[0], grid[1], grid[2]))
    # Eager attention computes the half of the pairs that is masked too, in the forward and twice in the backward …
    masked = 12.0 * flops.text_width * flops.text_layers * len(sample.input_ids_L) ** 2 / 2
    # … and nobody asks for the pixels' gradient, which only the first product of the vision tower would have.
    patches = model.model.visual.patch_embed.proj.weight.numel()
    pixels = 2.0 * patches * int(sample.grid_thw.prod()) if frozen != "vision tower" else 0.0
    assert counter.get_total_flops() == pytest.approx(counted + masked - pixels, rel=0.01)


def test_all_weights_that_learn_cost_three_forwards(tmp_path: Path) -> None:
    model = load_model(make_tiny_model(tmp_path), "float32")
    whole = model_flops(model).of_sample(100, 3, (2, 4, 4))
    model.requires_grad_(False)
    assert whole == pytest.approx(3 * model_flops(model).of_sample(100, 3, (2, 4, 4)))


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("NVIDIA H200", 989.4), ("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312), ("cpu", None)],
)
def test_the_peak_is_the_data_sheets(name: str, tflops: float | None) -> None:
    peak = peak_flops(name)
    assert peak is None if tflops is None else peak == pytest.approx(tflops * 1e12)
