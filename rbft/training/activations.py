"""What activations of a model take, and gradient checkpointing, which keeps fewer of them.

They are measured on a model without weights or data: each kind of block once, on PyTorch's meta device.

Forward and backward of one block run as they would in training, with its adapters, its frozen weights and its precision, but compute
nothing; the storages that live meanwhile are counted. Memory grows linearly with tokens (attention keeps no n x n matrix: SDPA's and
FlashAttention's fused kernels, and torch's varlen one, keep queries, keys, values, output and a number a head), so two small sizes give it
for any.
"""

from __future__ import annotations

import functools
import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from rbft.config import LoraConfig, ModelPart, TrainingConfig
from rbft.models.adapters import add_adapters
from rbft.models.last_layer import narrow_last_layer
from rbft.models.parameter_groups import freeze_parts, part_of

_ATTENTION = "rbft_measured"
_SIZES = (64, 128)
"""Tokens of the two measurements."""


def recompute_activations(model: Any) -> None:
    """Let the blocks of both towers keep their inputs alone, and compute the rest again in the backward pass.

    To be called when it is settled what learns: a vision tower in which nothing does has no backward pass, and keeps nothing.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # transformers 5.19 also lets the patch and token embeddings' outputs require gradients. Reentrant checkpointing needs that and this
    # does not, and a frozen vision tower would be recomputed and gone back through for nothing.
    model.disable_input_require_grads()
    tower = model.model.visual
    if not any(parameter.requires_grad for module in (tower.patch_embed, tower.blocks) for parameter in module.parameters()):
        for block in tower.blocks:
            block.gradient_checkpointing = False  # what it keeps for a pass that does not come is freed by no one but the garbage collector


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that were made inside and are still alive: now, and at the most. Works on real tensors and on meta ones."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {value.untyped_storage()._cdata for value in tree_iter((args, kwargs)) if isinstance(value, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                # A view shares the storage of what was given, which is known already or was there before.
                if storage._cdata not in given and storage._cdata not in self._seen:
                    self._add(storage)
        return result

    def _add(self, storage: Any) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        self._seen.add(key)
        self.now += num_bytes
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._remove, key, num_bytes)

    def _remove(self, key: int, num_bytes: int) -> None:
        self._seen.discard(key)
        self.now -= num_bytes


@dataclass(frozen=True)
class Bytes:
    """fixed + each * (number of tokens, patches or the like)."""

    fixed: float
    each: float

    def of(self, number: int) -> float:
        return self.fixed + self.each * number


@dataclass(frozen=True)
class Piece:
    """What a piece of the model keeps from its forward for its backward pass, and the most that is alive in the latter, that included."""

    kept: Bytes
    peak: Bytes


@dataclass(frozen=True)
class ModelPieces:
    """Each kind of piece, by what it is measured in."""

    patches: Piece
    """Patch embedding; a patch."""
    vision: Piece
    """A block of the vision tower; a patch."""
    merger: Piece
    """A video token."""
    text: Piece
    """A block of the language model; a token."""
    text_attention: Piece
    """The last one up to its attention; a token. What follows is computed where a token is predicted alone."""
    head: Piece
    """Final norm, language head and cross-entropy; a supervised token."""
    patch_state: int
    """Bytes of a patch's hidden state, what checkpointing keeps of a block."""
    token_state: int
    """Of a token's."""
    vision_learns: bool


def measure_pieces(config: Any, training: TrainingConfig) -> ModelPieces:
    """The pieces of the model that the transformers configuration `config` describes, as `training` trains them."""
    kind: Any = type(config)  # which mypy does not take for hashable
    return _measure_pieces(kind, config.to_json_string(use_diff=False), training.precision, training.lora, training.freeze)


@functools.lru_cache
def _measure_pieces(kind: type[Any], text: str, precision: str, lora: LoraConfig | None, freeze: tuple[ModelPart, ...]) -> ModelPieces:
    from transformers import AttentionInterface, AutoModelForImageTextToText

    AttentionInterface.register(_ATTENTION, _attend)
    config = kind.from_dict(json.loads(text))
    # One block of each kind is enough, and building all of a large model takes seconds.
    config.text_config.num_hidden_layers, config.vision_config.depth = 2, 1
    config.text_config.layer_types = config.text_config.layer_types[:1] * 2
    config._attn_implementation = config.text_config._attn_implementation = config.vision_config._attn_implementation = _ATTENTION
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    if lora is not None:
        add_adapters(model, lora, 0)
    freeze_parts(model, freeze)
    model.train()
    tower, language = model.model.visual, model.model.language_model
    narrow_last_layer(model)
    embed, block, (layer, last) = tower.patch_embed, tower.blocks[0], language.layers
    learning = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    # Before a piece that nothing learns in, and nothing before it, autograd keeps nothing.
    reaches_text = bool(learning & {"vision", "merger", "embeddings"}) or "language" in learning
    width, hidden = embed.embed_dim, language.config.hidden_size

    def states(*shape: int, needs_grad: bool = True) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=needs_grad)

    def rotary(number: int, size: int, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.empty(number, size, dtype=kind, device="meta"), torch.empty(number, size, dtype=kind, device="meta")

    def patches(number: int) -> Callable[[], torch.Tensor]:
        # Made inside, as those of a training step are of its frames: if they are kept as they are, they count.
        return lambda: embed(torch.empty(number, 3 * embed.temporal_patch_size * embed.patch_size**2, device="meta"))

    def vision(number: int) -> Callable[[], torch.Tensor]:
        given, where = (
            states(number, width, needs_grad="vision" in learning),
            rotary(number, width // config.vision_config.num_heads, torch.float32),
        )
        return lambda: block(given, cu_seqlens=torch.tensor([0, number]), position_embeddings=where)

    def merger(number: int) -> Callable[[], torch.Tensor]:
        given = states(number * tower.spatial_merge_size**2, width, needs_grad="vision" in learning)
        return lambda: tower.merger(given)

    def text_block(number: int) -> Callable[[], torch.Tensor]:
        given, (cos, sin) = states(1, number, hidden, needs_grad=reaches_text), rotary(number, layer.self_attn.head_dim, dtype)
        return lambda: layer(given, position_embeddings=(cos[None], sin[None]))

    def text_attention(number: int) -> Callable[[], torch.Tensor]:
        given, (cos, sin) = states(1, number, hidden, needs_grad=reaches_text), rotary(number, layer.self_attn.head_dim, dtype)
        one = torch.zeros(1, dtype=torch.long, device="meta")
        return lambda: last(given, position_embeddings=(cos[None], sin[None]), predicting_N=one)

    def head(number: int) -> Callable[[], torch.Tensor]:
        given, labels = states(number, hidden), torch.empty(number, dtype=torch.long, device="meta")
        return lambda: nn.functional.cross_entropy(model.lm_head(language.norm(given)).float(), labels, reduction="sum")

    return ModelPieces(
        patches=_measure(patches, embed),
        vision=_measure(vision, block),
        merger=_measure(merger, tower.merger),
        text=_measure(text_block, layer),
        text_attention=_measure(text_attention, last),
        head=_measure(head, nn.ModuleList([language.norm, model.lm_head])),
        patch_state=width * dtype.itemsize,
        token_state=hidden * dtype.itemsize,
        vision_learns="vision" in learning,
    )


def _measure(piece: Callable[[int], Callable[[], torch.Tensor]], module: nn.Module) -> Piece:
    (kept_small, peak_small), (kept_large, peak_large) = (_measure_once(piece(size), module) for size in _SIZES)
    return Piece(_line(kept_small, kept_large), _line(peak_small, peak_large))


def _line(small: int, large: int) -> Bytes:
    each = (large - small) / (_SIZES[1] - _SIZES[0])
    return Bytes(small - each * _SIZES[0], each)


def _measure_once(forward: Callable[[], torch.Tensor], module: nn.Module) -> tuple[int, int]:
    """Bytes that the forward leaves behind beside its output, and the most that lives in forward and backward."""
    hooks = [p.register_post_accumulate_grad_hook(_drop_gradient) for p in module.parameters() if p.requires_grad]
    with LiveBytes() as live:
        output = forward()
        kept = live.now - output.untyped_storage().nbytes()
        if output.requires_grad:
            output.backward(torch.empty_like(output))
    for hook in hooks:
        hook.remove()
    return kept, live.most


def _drop_gradient(parameter: torch.Tensor) -> None:
    """Gradients are counted elsewhere; here they live as long as it takes to hand one over."""
    parameter.grad = None


class _Attention(torch.autograd.Function):
    """Keeps what fused attention kernels keep, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query)
        sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    attended: torch.Tensor = _Attention.apply(query, key, value)
    return attended.transpose(1, 2).contiguous(), None
