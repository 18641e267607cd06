"""How fast is the training step of a 3B or 7B model on one GPU, and what is each technique worth?
`python -m benchmarks.gpu_training [--model qwen2.5-vl-7b] [--json PATH]`

Random weights in the shapes of Qwen2.5-VL, clips of the paper's size (1 FPS, 151,200 pixels a frame), AdamW. It measures the model step
alone: forward, backward and optimiser on one device, nothing decoded and nothing sent between GPUs. Each technique is turned off in turn.
It needs torch (2.11 or later), transformers (5.17 or later) and this folder, and nothing else; flash-attn and liger-kernel are used if they
are installed.

    MFU = FLOPs of the model / (seconds * the device's dense bf16 FLOP/s)

`rbft.models.flops` says what counts: not padding, not what checkpointing computes again.

Not what training does: on CUDA the optimiser holds no fp32 weights and its moments are bf16, but in the variant "fp32 masters". That
takes 8 bytes a weight on one GPU, and with masters 18 (of which ZeRO-2 spreads 16 over the workers), so that a 7B model with masters fits
no single one. Peak memory is therefore that of activations beside 8 bytes a weight; `rbft plan` has what a worker will hold. Training
offers full gradient checkpointing or none: "checkpointing every other block" is here alone.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from rbft.models import attention
from rbft.models.attention import use_segments
from rbft.models.batches import MicroBatch, pack, pad, to_device
from rbft.models.chat import IGNORE_INDEX, EncodedSample
from rbft.models.flops import model_flops, peak_flops
from rbft.models.last_layer import narrow_last_layer
from rbft.models.patches import PatchLayout, multiply_patches, patchify
from rbft.training.kernels import fuse
from rbft.training.loss import SupervisedLoss

VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14, "temporal_patch_size": 2}
VISION |= {"spatial_merge_size": 2, "window_size": 112, "tokens_per_second": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-vl-3b": {
        "text": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16}
        | {"num_key_value_heads": 2, "vocab_size": 151_936, "mrope_section": [16, 24, 24]},
        "vision": VISION | {"out_hidden_size": 2048, "fullatt_block_indexes": [7, 15, 23, 31]},
        "tied": True,
    },
    "qwen2.5-vl-7b": {
        "text": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
        | {"num_key_value_heads": 4, "vocab_size": 152_064, "mrope_section": [16, 24, 24]},
        "vision": VISION | {"out_hidden_size": 3584, "fullatt_block_indexes": [7, 15, 23, 31]},
        "tied": False,
    },
    "tiny": {
        "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"num_key_value_heads": 2, "vocab_size": 320, "mrope_section": [2, 3, 3]},
        "vision": VISION
        | {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64, "fullatt_block_indexes": [1]},
        "tied": True,
    },
}
"""From the config.json of Qwen's models; "tiny" is for tests."""
VIDEO_TOKEN, PAD_TOKEN = 1, 0

NUM_FRAMES = (60, 32, 48, 16, 24, 60, 40, 12)
"""Of the clips, at 1 FPS: 12 to 60 seconds."""
FRAME_SIZE = (336, 448)
"""Of 360 x 420 pixels in area, rounded to tokens of 28 x 28 as 4:3 video is (`rbft.video.sampling.fit_size`)."""
NUM_PROMPT_TOKENS, NUM_ANSWER_TOKENS = 160, 300
"""Of a rationale prompt and a rationale."""


@dataclass(frozen=True)
class Technique:
    """What a step is computed with. The defaults are what training does, but for `masters`."""

    packed: bool = True
    segments: bool = True
    """All windows in one call; else transformers' loop over them."""
    supervised_head: bool = True
    """Only supervised positions go through the language head."""
    narrow_last_layer: bool = True
    """And through what of the last layer follows its attention."""
    frames_on_device: bool = True
    """uint8 travels and is normalised there; else float32 patches travel."""
    indices_ahead: bool = True
    """The vision tower's positions and windows come with the batch; else they are worked out in the step."""
    fused: bool = True
    """Liger's norms and MLPs, where it is installed and there is a GPU."""
    multiplied_patches: bool = True
    """Patches are embedded by a matrix product; else by transformers' convolution."""
    varlen: bool = True
    """On CUDA, FlashAttention's varlen kernel or torch's; else scaled_dot_product_attention, sample by sample and windows by size."""
    checkpointing: str = "full"
    """"full", "every-other" (block) or "none"."""
    masters: bool = False
    """The optimiser steps fp32 copies of the weights, and gradients are added up in fp32."""


VARIANTS: dict[str, Technique] = {
    "all": Technique(),
    "padded": Technique(packed=False),
    "window by window": Technique(segments=False, packed=False),
    "all logits": Technique(supervised_head=False, narrow_last_layer=False),
    "whole last layer": Technique(narrow_last_layer=False),
    "float32 patches from the host": Technique(frames_on_device=False),
    "indices in the step": Technique(indices_ahead=False),
    "no fused kernels": Technique(fused=False),
    "convolved patches": Technique(multiplied_patches=False),
    "no varlen attention": Technique(varlen=False),
    "none of them": Technique(False, False, False, False, False, False, False, False, False),
    "checkpointing every other block": Technique(checkpointing="every-other"),
    "no checkpointing": Technique(checkpointing="none"),
    "fp32 masters": Technique(masters=True),
}


@dataclass(frozen=True)
class Workload:
    """The clips of a step and how they are cut into micro-batches."""

    num_frames: Sequence[int] = NUM_FRAMES
    frame_size: tuple[int, int] = FRAME_SIZE
    num_prompt_tokens: int = NUM_PROMPT_TOKENS
    num_answer_tokens: int = NUM_ANSWER_TOKENS
    micro_batch_size: int = 2
    num_steps: int = 5
    """Timed ones; one more goes before them."""


@dataclass(frozen=True)
class Measured:
    """One variant; `error` if it could not be run."""

    step_s: float = 0.0
    """The median."""
    tokens_per_s: float = 0.0
    """Of the samples, video and text; no padding."""
    samples_per_s: float = 0.0
    mfu: float | None = None
    """Of the data sheet's FLOP/s; None for a device that is not in `rbft.models.flops`."""
    share_of_product: float = 0.0
    """The model's FLOP/s as a share of those of a large matrix product, measured on this device in this precision."""
    peak_gib: float | None = None
    padded_share: float = 0.0
    """Of the tokens that go through the language model."""
    loss: float = 0.0
    """A token, before the first step: the same for all variants but for rounding."""
    error: str = ""


@dataclass
class _Sizes:
    """What `rbft.models.batches` asks of a `ChatAdapter`."""

    vision_config: Any
    pad_token_id: int = PAD_TOKEN
    patches: PatchLayout = field(default_factory=lambda: PatchLayout(14, 2, 2, (122.8, 116.7, 104.1), (68.5, 66.6, 70.3)))


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_training", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--model", choices=list(SHAPES), action="append", help="may be given again; without it, 3B and 7B, or tiny on the CPU"
    )
    parser.add_argument("--variant", choices=list(VARIANTS), action="append", help="may be given again; without it, all")
    parser.add_argument("--micro-batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the figures too")
    chosen = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = chosen.model or (["qwen2.5-vl-3b", "qwen2.5-vl-7b"] if device.type == "cuda" else ["tiny"])
    workload = Workload(micro_batch_size=chosen.micro_batch_size, num_steps=chosen.steps)
    if device.type == "cpu":
        workload = replace(workload, num_frames=(8, 4, 6, 2), frame_size=(56, 84), num_prompt_tokens=20, num_answer_tokens=10)
    product = product_flops(device)
    print(f"{describe(device)}; a large product reaches {product / 1e12:.1f} TFLOP/s")
    print('Weights and AdamW\'s moments in bf16 on CUDA, no fp32 weights but in "fp32 masters": peaks hold 8 bytes a weight, there 18.')
    results: dict[str, Any] = {"device": describe(device), "product_flops": product, "workload": asdict(workload), "models": {}}
    for model in models:
        found = results["models"][model] = {}
        print(f"\n{model}\n{_HEADING}")
        for name in chosen.variant or VARIANTS:
            found[name] = asdict(measure(SHAPES[model], VARIANTS[name], workload, device, product))
            print(_line(name, Measured(**found[name])), flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=2) + "\n")


_HEADING = (
    "| variant | step | tokens/s | MFU | of a product | peak | padded | loss |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def _line(name: str, found: Measured) -> str:
    if found.error:
        return f"| {name} | {found.error} | | | | | | |"
    mfu = "" if found.mfu is None else f"{100 * found.mfu:.1f} %"
    peak = "" if found.peak_gib is None else f"{found.peak_gib:.1f} GiB"
    return (
        f"| {name} | {found.step_s:.3f} s | {found.tokens_per_s:,.0f} | {mfu} | {100 * found.share_of_product:.1f} % | {peak} | "
        f"{100 * found.padded_share:.1f} % | {found.loss:.4f} |"
    )


def describe(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    import transformers

    return f"{name}, torch {torch.__version__}, transformers {transformers.__version__}"


def product_flops(device: torch.device) -> float:
    """FLOP/s of a square matrix product: bf16 and 8192 wide on CUDA, float32 and 512 wide on the CPU."""
    width, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    a, b = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(12):
        started = _now(device)
        for _ in range(4):
            a @ b
        times.append((_now(device) - started) / 4)
    return 2 * width**3 / statistics.median(times[2:])


def measure(shape: dict[str, Any], technique: Technique, workload: Workload, device: torch.device, product: float) -> Measured:
    """Time steps of a new model of `shape`; a variant that does not fit into memory comes back with an `error`."""
    no_kernel = mock.patch.object(attention, "_varlen_kernel", return_value=None)
    try:
        with contextlib.nullcontext() if technique.varlen else no_kernel:
            return _measure(shape, technique, workload, device, product)
    except torch.OutOfMemoryError:
        return Measured(error="out of memory")
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(shape: dict[str, Any], technique: Technique, workload: Workload, device: torch.device, product: float) -> Measured:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model = make_model(shape, device)
    sizes = _Sizes(model.config.vision_config)
    loss = prepare(model, sizes, technique, device)
    samples = make_samples(workload, sizes, shape["text"]["vocab_size"])
    batches = list(micro_batches(samples, sizes, technique, workload.micro_batch_size))
    make_optimiser = _MasterAdamW if technique.masters else torch.optim.AdamW
    optimiser = make_optimiser(model.parameters(), lr=1e-6, fused=device.type == "cuda")
    num_supervised = sum(sample.num_supervised_tokens for sample in samples)
    times, first_loss = [], 0.0
    for step in range(workload.num_steps + 1):
        started = _now(device)
        total = torch.zeros((), device=device)
        for batch in batches:
            one = loss(**to_device(batch, device) if technique.indices_ahead else _whole_to_device(batch, device))
            (one / num_supervised).backward()
            total += one.detach()
        optimiser.step()
        optimiser.zero_grad()
        times.append(_now(device) - started)
        first_loss = float(total) / num_supervised if step == 0 else first_loss
    step_s = statistics.median(times[1:])
    num_tokens = sum(len(sample.input_ids_L) for sample in samples)
    costs = model_flops(model)
    flops = sum(costs.of_sample(len(s.input_ids_L), s.num_supervised_tokens, tuple(s.grid_thw.tolist())) for s in samples)
    sheet = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return Measured(
        step_s=step_s,
        tokens_per_s=num_tokens / step_s,
        samples_per_s=len(samples) / step_s,
        mfu=None if sheet is None else flops / step_s / sheet,
        share_of_product=flops / step_s / product,
        peak_gib=torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
        padded_share=1 - num_tokens / sum(batch["input_ids"].numel() for batch in batches),
        loss=first_loss,
    )


class _MasterAdamW:
    """AdamW on fp32 copies of the weights. Gradients are added up in fp32 as they come, and those in the weights' type go."""

    def __init__(self, weights: Iterable[torch.nn.Parameter], lr: float, fused: bool) -> None:
        self._weights = list(weights)
        self._masters = [weight.detach().to(torch.float32, copy=True) for weight in self._weights]
        self._adamw = torch.optim.AdamW(self._masters, lr=lr, fused=fused)
        for weight, master in zip(self._weights, self._masters, strict=True):
            weight.register_post_accumulate_grad_hook(functools.partial(self._take_gradient, master))

    def step(self) -> None:
        self._adamw.step()
        with torch.no_grad():
            for weight, master in zip(self._weights, self._masters, strict=True):
                weight.copy_(master)

    def zero_grad(self) -> None:
        self._adamw.zero_grad()

    @staticmethod
    def _take_gradient(master: torch.Tensor, weight: torch.Tensor) -> None:
        assert weight.grad is not None
        master.grad = weight.grad.float() if master.grad is None else master.grad.add_(weight.grad)
        weight.grad = None


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def make_model(shape: dict[str, Any], device: torch.device) -> Any:
    """A Qwen2.5-VL with random weights, the same ones at every call: bf16 on CUDA, float32 on the CPU."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {name: value for name, value in shape["text"].items() if name != "mrope_section"}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": shape["text"]["mrope_section"]}
    # Ids of the markers, which the samples here do not hold, must lie in the vocabulary.
    ids = {"image_token_id": 2, "video_token_id": VIDEO_TOKEN, "vision_start_token_id": 3, "vision_end_token_id": 4}
    text |= {"rms_norm_eps": 1e-6, "max_position_embeddings": 128_000, "tie_word_embeddings": shape["tied"]}
    text |= {"bos_token_id": PAD_TOKEN, "eos_token_id": PAD_TOKEN, "pad_token_id": PAD_TOKEN}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=shape["vision"], tie_word_embeddings=shape["tied"], **ids)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype)
    return model.train()


def prepare(model: Any, sizes: _Sizes, technique: Technique, device: torch.device) -> SupervisedLoss:
    """The loss around `model`, with the techniques that are the model's."""
    if technique.checkpointing != "none":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if technique.checkpointing == "every-other":
        for stack in (model.model.visual.blocks, model.model.language_model.layers):
            for block in list(stack)[1::2]:
                block.gradient_checkpointing = False
    if technique.segments:
        use_segments(model, packed=technique.packed)
    if technique.multiplied_patches:
        multiply_patches(model)
    if technique.narrow_last_layer:
        narrow_last_layer(model)
    if technique.fused and device.type == "cuda":
        try:
            fuse(model)
        except ImportError:
            print("(liger-kernel is not installed)")
    return SupervisedLoss(model, sizes.patches) if technique.supervised_head else _AllLogits(model, sizes.patches)


class _AllLogits(SupervisedLoss):
    """The loss as transformers computes it: every position goes through the language head."""

    def forward(
        self, labels: torch.Tensor, token_weights: torch.Tensor | None = None, frames: torch.Tensor | None = None, **inputs: Any
    ) -> torch.Tensor:
        kept = self.model.lm_head
        found: list[torch.Tensor] = []

        def all_positions(_model: Any, _inputs: Any, output: Any) -> None:
            found.append(kept(output.last_hidden_state))

        hook = self.model.model.register_forward_hook(all_positions)
        try:
            super().forward(torch.full_like(labels, IGNORE_INDEX), None, frames, **inputs)
        finally:
            hook.remove()
        logits_NV = found[0][:, :-1].float().flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits_NV, labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


def make_samples(workload: Workload, sizes: _Sizes, vocab_size: int) -> list[EncodedSample]:
    """Clips and words of noise, the same ones at every call."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for num_frames in workload.num_frames:
        frames_THWC = torch.randint(256, (num_frames, *workload.frame_size, 3), dtype=torch.uint8, generator=generator)
        grid = sizes.patches.grid(frames_THWC)
        num_video = grid[0] * grid[1] * grid[2] // sizes.patches.merge_size**2
        words = torch.randint(5, vocab_size, (workload.num_prompt_tokens + workload.num_answer_tokens,), generator=generator)
        begin, rest = words[:8], words[8:]
        tokens = torch.cat([begin, torch.full((num_video,), VIDEO_TOKEN), rest])
        labels = tokens.clone()
        labels[: -workload.num_answer_tokens] = IGNORE_INDEX
        samples.append(EncodedSample(tokens, labels, (tokens == VIDEO_TOKEN).long() * 2, frames_THWC, torch.tensor(grid), 2.0))
    return samples


def micro_batches(samples: Sequence[EncodedSample], sizes: _Sizes, technique: Technique, size: int) -> Iterator[MicroBatch]:
    """The samples in their order, `size` at once; on the host, pinned if there is a GPU."""
    for start in range(0, len(samples), size):
        some = samples[start : start + size]
        batch = pack(some, sizes) if technique.packed else pad(some, sizes)
        if not technique.frames_on_device:
            grids = [tuple(sample.grid_thw.tolist()) for sample in some]
            batch["pixel_values_videos"] = patchify(batch.pop("frames"), grids, sizes.patches)
        if not technique.indices_ahead:
            batch = {name: value for name, value in batch.items() if not name.startswith("video_") or name == "video_grid_thw"}
        if torch.cuda.is_available():
            batch = {name: value.pin_memory() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        yield batch


def _whole_to_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """The grid too, from which transformers then works out what it needs."""
    return {name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
