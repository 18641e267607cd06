"""What model the weights of an official checkpoint make, told from their names and shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from rbft.errors import ModelError
from rbft.models.video.internvideo2 import InternVideo2Config
from rbft.models.video.uniformerv2 import UniFormerV2Config

Weights = dict[str, torch.Tensor]

_INTERNVIDEO2_HEADS = {384: 6, 768: 12, 1024: 16, 1408: 16, 3200: 25}
"""Hidden size -> attention heads, of the published S, B, L, 1B and 6B."""
_CLIP_HEAD_SIZE = 64


@dataclass(frozen=True)
class Geometry:
    """What weights do not tell, or are to be brought to."""

    num_frames: int | None = None
    """Frames a clip; None: as many as it was trained with."""
    image_size: int | None = None
    """Pixels; None: as it was trained with."""
    trained_frames: int = 8
    """Frames that the checkpoint was trained with. Joint position embeddings of InternVideo2 do not tell; nor do UniFormerV2's weights."""
    num_heads: int | None = None
    """Of attention; None: as published models of this width have."""
    num_pooling_heads: int = 16
    global_layers: tuple[int, ...] | None = None
    """Layers that UniFormerV2's global blocks follow; None: the last ones, as in every published configuration."""


def uniformerv2_config(weights: Weights, geometry: Geometry) -> UniFormerV2Config:
    """Of the official `weights`."""
    size, _, frames, patch, _ = weights["conv1.weight"].shape
    num_layers, num_global = _count(weights, r"transformer\.resblocks\.(\d+)\."), _count(weights, r"transformer\.dec\.(\d+)\.")
    local = weights.get("transformer.resblocks.0.lmhra1.pos_embed.1.weight")
    return UniFormerV2Config(
        image_size=patch * _root(len(weights["positional_embedding"]) - 1),
        patch_size=patch,
        num_frames=geometry.trained_frames,
        hidden_size=size,
        num_hidden_layers=num_layers,
        num_attention_heads=geometry.num_heads or size // _CLIP_HEAD_SIZE,
        intermediate_size=_rows(weights, "transformer.resblocks.0.mlp.c_fc.weight", 4 * size),
        global_layers=list(geometry.global_layers or range(num_layers - num_global, num_layers)),
        has_local_blocks=local is not None,
        has_second_local_block="transformer.resblocks.0.lmhra2.pos_embed.1.weight" in weights or local is None,
        local_size=int(size / 1.5) if local is None else len(local),
        halves_time=frames == 3,
        frozen="transformer.balance" not in weights,
    )


def internvideo2_config(weights: Weights, geometry: Geometry, where: str) -> InternVideo2Config:
    """Of the official `weights`; raises `ModelError`, beginning with `where`, if they leave something open."""
    size, _, tubelet, patch, _ = weights["patch_embed.proj.weight"].shape
    num_heads = geometry.num_heads or _INTERNVIDEO2_HEADS.get(size)
    if num_heads is None:
        raise ModelError(f"{where}: no published InternVideo2 is {size} wide; say how many attention heads it has (--heads)")
    is_separate = "pos_embed_spatial" in weights
    num_tubelets = weights["pos_embed_temporal"].shape[1] if is_separate else max(1, geometry.trained_frames // tubelet)
    positions = weights.get("pos_embed_spatial", weights.get("pos_embed", torch.empty(1, 1, 0)))
    num_places = positions.shape[1] if is_separate else (positions.shape[1] - 1) / num_tubelets
    grid = _root(num_places)
    if grid**2 != num_places:
        raise ModelError(
            f"{where}: pos_embed has {positions.shape[1]} positions, which are no square of places at {num_tubelets} points of time; "
            "say how many frames it was trained with (--trained-frames)"
        )
    return InternVideo2Config(
        image_size=grid * patch,
        patch_size=patch,
        num_frames=num_tubelets * tubelet,
        tubelet_size=tubelet,
        hidden_size=size,
        num_hidden_layers=_count(weights, r"blocks\.(\d+)\."),
        num_attention_heads=num_heads,
        intermediate_size=_rows(weights, "blocks.0.mlp.fc1.weight", 4 * size),
        qk_norm="blocks.0.attn.q_norm.weight" in weights,
        qkv_bias="blocks.0.attn.qkv.bias" in weights,
        layer_scale=1e-5 if "blocks.0.ls1.gamma" in weights else 0.0,
        separate_positions=is_separate,
        pooling_size=_rows(weights, "clip_projector.cross_attn.proj.weight", 768),
        num_pooling_heads=geometry.num_pooling_heads,
        has_extra_mlp="extra_mlp.1.fc1.weight" in weights,
        **_pooling(weights, size, num_tubelets),
    )


def _pooling(weights: Weights, size: int, num_tubelets: int) -> dict[str, str]:
    """How the head's input is pooled, told from the width of the head and from what is there."""
    names = {name for name in weights if name.startswith("down_norm.") or name.startswith("down.")}
    head = weights.get("head.weight")
    pooling_size = _rows(weights, "clip_projector.cross_attn.proj.weight", 768)
    parts = {
        "cls_mean": 2 * size,
        "cls_frames": pooling_size * (num_tubelets + 1),
        "cls_mean_attention": 2 * size + pooling_size,
        "cls_frames_attention": pooling_size * (num_tubelets + 2),
    }
    is_class_token = bool(names) or (head is not None and head.shape[1] != pooling_size)
    if not is_class_token or head is None:
        return {"pooling": "attention"}
    by_frames = "down.0.weight" in weights
    fitting = [name for name, width in parts.items() if width == head.shape[1] and ("frames" in name) == by_frames]
    norm = "batch_plain" if "down_norm.weight" not in weights else "batch" if "down_norm.running_mean" in weights else "layer"
    return {"pooling": (fitting or ["attention"])[0], "pooling_norm": norm}


def _count(weights: Weights, pattern: str) -> int:
    found = [int(match[1]) for name in weights if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def _rows(weights: Weights, name: str, otherwise: int) -> int:
    return len(weights[name]) if name in weights else otherwise


def _root(number: float) -> int:
    return round(number**0.5)
