"""The arithmetic of a training step, counted from the model's own matrices: what MFU is made of.

    forward   2 x weights x tokens for every matrix, and 4 x width for every pair of positions that attend to each other
              (half of the pairs in the text, which is causal; the pairs within a frame or a window in the vision tower)
    backward  as much again for the gradient that flows on, and once more for the weights that learn: 3 x forward where all do

Counted: samples at their own length; the language head, and the last layer's MLP, at supervised positions alone. Not counted, as they are
no use to anybody: padding, fillers, what gradient checkpointing computes twice (so this is model FLOPs utilisation, PaLM's MFU, not
hardware utilisation); norms, activations, softmax and the optimiser, which are small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PEAK_FLOPS = (
    ("H200 NVL", 835e12),
    ("H200", 989.4e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989.4e12),
    ("A100", 312e12),
)
"""Part of a device's name -> dense bf16 FLOP/s by NVIDIA's data sheets; the first that fits."""


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of the device as its maker states them; None for one that is not in the table, as every CPU."""
    return next((flops for part, flops in PEAK_FLOPS if part in device_name), None)


@dataclass(frozen=True)
class ModelFlops:
    """What a sample costs. Weights are elements of matrices; `*_learning` is the share of them that learns."""

    text: int
    text_learning: float
    text_layers: int
    text_width: int
    last_mlp: int
    """Those of `text` that follow the last layer's attention."""
    head: int
    head_learning: float
    merger: int
    merger_learning: float
    vision: int
    vision_learning: float
    vision_width: int
    full_layers: int
    """Of the vision tower, whose positions attend to all of their frame; in the others to their window."""
    window_layers: int
    window_side: int
    """Of such a window, in patches."""
    merge_size: int
    learns_anything: bool

    def of_sample(self, num_tokens: int, num_supervised: int, grid_thw: tuple[int, int, int]) -> float:
        """FLOPs of one sample's forward and backward. `grid_thw` is its video in patches."""
        num_frames, height, width = grid_thw
        num_patches = num_frames * height * width
        full = self.full_layers * (height * width) ** 2
        windows = self.window_layers * _squares(height, self.window_side) * _squares(width, self.window_side)
        vision_backward = self.vision_learning > 0
        return (
            _matrices(self.vision, num_patches, vision_backward, self.vision_learning)
            + _attention(self.vision_width * num_frames * (full + windows), vision_backward)
            + _matrices(self.merger, num_patches // self.merge_size**2, vision_backward or self.merger_learning > 0, self.merger_learning)
            + _matrices(self.text - self.last_mlp, num_tokens, self.learns_anything, self.text_learning)
            + _matrices(self.last_mlp, num_supervised, self.learns_anything, self.text_learning)
            + _attention(self.text_width * self.text_layers * num_tokens**2 / 2, self.learns_anything)
            + _matrices(self.head, num_supervised, self.learns_anything, self.head_learning)
        )


def model_flops(model: Any) -> ModelFlops:
    """What a sample costs in a Qwen2-VL or Qwen2.5-VL, whole or partitioned by ZeRO-3; which weights learn is read from the model."""
    weights, learning, last_mlp = dict.fromkeys(_PARTS, 0), dict.fromkeys(_PARTS, 0), 0
    of_last_mlp = f"language_model.layers.{model.config.text_config.num_hidden_layers - 1}.mlp."
    for name, parameter in model.named_parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves an empty tensor in the parameter's place
        part = next((part for part in _PARTS if _PARTS[part] in name), None)
        if part is not None and len(shape) >= 2:
            weights[part] += shape.numel()
            learning[part] += shape.numel() * parameter.requires_grad
            last_mlp += shape.numel() * (of_last_mlp in name)
    text, vision = model.config.text_config, model.config.vision_config
    # Tied embeddings are the head's matrix too, and a parameter of another name.
    head = text.vocab_size * text.hidden_size
    window_side = int(getattr(vision, "window_size", 0)) // vision.patch_size
    full_layers = len(vision.fullatt_block_indexes) if window_side else vision.depth
    share = {part: learning[part] / (weights[part] or 1) for part in _PARTS}
    return ModelFlops(
        text=weights["text"],
        text_learning=share["text"],
        text_layers=text.num_hidden_layers,
        text_width=text.hidden_size,
        last_mlp=last_mlp,
        head=head,
        head_learning=float(model.get_output_embeddings().weight.requires_grad),
        merger=weights["merger"],
        merger_learning=share["merger"],
        vision=weights["vision"],
        vision_learning=share["vision"],
        vision_width=getattr(vision, "embed_dim", None) or vision.hidden_size,
        full_layers=full_layers,
        window_layers=vision.depth - full_layers,
        window_side=window_side or 1,
        merge_size=vision.spatial_merge_size,
        learns_anything=any(parameter.requires_grad for parameter in model.parameters()),
    )


_PARTS = {"merger": "visual.merger.", "vision": "visual.", "text": "language_model.layers."}
"""Part -> what its parameters' names hold; the first that fits."""


def _matrices(weights: int, num_rows: int, has_backward: bool, share_learning: float) -> float:
    return 2.0 * weights * num_rows * (1 + has_backward + share_learning)


def _attention(pairs_times_width: float, has_backward: bool) -> float:
    """Scores and the weighted sum, 2 FLOPs each; backward has two products for each of them."""
    return 4.0 * pairs_times_width * (3 if has_backward else 1)


def _squares(length: int, side: int) -> int:
    """Sum of squares of the parts that `length` falls into, `side` each and the rest: the pairs along one axis of all windows."""
    return length // side * side**2 + (length % side) ** 2
