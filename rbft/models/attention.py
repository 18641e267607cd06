"""Attention over segments that lie one after the other: samples in a packed row, windows and pairs of frames in the vision tower.

Block-diagonal, without an n x n mask and without a Python loop over segments. `use_segments` has a model's vision tower, and if it is
to be fed packed rows its language model too, attend through `attend_in_segments`:

- on CUDA in half precision, FlashAttention's varlen kernel (the package if it is installed, else the one in torch);
- elsewhere, samples go through `scaled_dot_product_attention` one by one, which copies nothing together; windows, which are many and of few
  sizes, in one call a size.

The name contains "flash" on purpose: transformers 5 hands the vision tower's boundaries to implementations of such a name in one call, and
splits into a Python loop for all others (`is_flash_attention_requested`, modeling_qwen2_5_vl.py).

Shape legend: S tokens of all segments, H heads, K heads of keys and values, D head size.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

SEGMENTS = "rbft_flash_segments"
"""Our name in transformers' registries."""

NO_MASK: dict[str, None] = {"full_attention": None}
"""`attention_mask` of a packed row for a language model that attends in segments: else transformers would make an n x n mask."""


def use_segments(model: Any, packed: bool) -> None:
    """Have the vision tower of `model` (Qwen2-VL or Qwen2.5-VL) attend in segments, and if `packed` the language model too."""
    _register()
    vision, text = _configs(model)
    vision._attn_implementation = SEGMENTS
    if packed:
        text._attn_implementation = SEGMENTS


def attends_packed(model: Any) -> bool:
    """Whether the language model takes packed rows with `NO_MASK`."""
    return bool(_configs(model)[1]._attn_implementation == SEGMENTS)


@contextlib.contextmanager
def reference_attention(model: Any, implementation: str = "sdpa") -> Iterator[None]:
    """In the block, `model` attends as transformers does: with masks, and window after window."""
    configs = _configs(model)
    names = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = implementation
    try:
        yield
    finally:
        for config, name in zip(configs, names, strict=True):
            config._attn_implementation = name


def attend_in_segments(
    query_SHD: torch.Tensor,
    key_SKD: torch.Tensor,
    value_SKD: torch.Tensor,
    boundaries: torch.Tensor,
    longest: int,
    is_causal: bool,
    scale: float,
) -> torch.Tensor:
    """[S, H, D]: every token attends to its own segment alone, or if `is_causal` to what is before it there.

    Segment i reaches from `boundaries[i]` to `boundaries[i + 1]` (int32, on the device); `longest` is the longest one's length.
    """
    if query_SHD.is_cuda and query_SHD.dtype in (torch.float16, torch.bfloat16):
        kernel = _varlen_kernel()
        if kernel is not None:
            return kernel(query_SHD, key_SKD, value_SKD, boundaries, longest, is_causal, scale)
    return _by_length(query_SHD, key_SKD, value_SKD, tuple(boundaries.tolist()), is_causal, scale)


def _by_length(
    query_SHD: torch.Tensor,
    key_SKD: torch.Tensor,
    value_SKD: torch.Tensor,
    boundaries: tuple[int, ...],
    is_causal: bool,
    scale: float,
) -> torch.Tensor:
    lengths = [end - start for start, end in itertools.pairwise(boundaries)]
    if is_causal and len(set(lengths)) > 1:
        parts = zip(*(x.split(lengths) for x in (query_SHD, key_SKD, value_SKD)), strict=True)
        return torch.cat([_attend(q[None], k[None], v[None], is_causal, scale)[0] for q, k, v in parts])
    groups, order_S = _groups(boundaries, query_SHD.device)
    attended = []
    for length, tokens in groups:
        q, k, v = ((x if tokens is None else x.index_select(0, tokens)).unflatten(0, (-1, length)) for x in (query_SHD, key_SKD, value_SKD))
        attended.append(_attend(q, k, v, is_causal, scale).flatten(0, 1))
    return attended[0] if order_S is None else torch.cat(attended).index_select(0, order_S)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool, scale: float) -> torch.Tensor:
    """[segments, length, H, D]; tensors of fewer dimensions would get SDPA's slow path."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    out = scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2)


@functools.lru_cache(maxsize=16)
def _groups(boundaries: tuple[int, ...], device: torch.device) -> tuple[list[tuple[int, torch.Tensor | None]], torch.Tensor | None]:
    """(length, its tokens) of every length there is, and where each token then stands in the groups' outputs; None if nothing moves."""
    with torch.inference_mode(False):  # They are kept, and who trains later could not use tensors of inference.
        edges = torch.tensor(boundaries)
        starts, lengths = edges[:-1], edges.diff()
        distinct = lengths.unique().tolist()
        if len(distinct) == 1:
            return [(distinct[0], None)], None
        groups = [(length, (starts[lengths == length, None] + torch.arange(length)).flatten()) for length in distinct]
        order_S = torch.cat([tokens for _, tokens in groups]).argsort()
        return [(length, tokens.to(device)) for length, tokens in groups], order_S.to(device)


_Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, bool, float], torch.Tensor]


@functools.cache
def _varlen_kernel() -> _Kernel | None:
    """FlashAttention 3 or 2 if installed, else torch's own; None if this torch has none."""
    with contextlib.suppress(ImportError):
        return _flash_attention(import_module("flash_attn_interface").flash_attn_varlen_func)
    with contextlib.suppress(ImportError):
        return _flash_attention(import_module("flash_attn").flash_attn_varlen_func)
    with contextlib.suppress(ImportError):
        return _torch_varlen()
    return None


def _flash_attention(function: Callable[..., Any]) -> _Kernel:
    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, boundaries: torch.Tensor, longest: int, is_causal: bool, scale: float
    ) -> torch.Tensor:
        out = function(q, k, v, boundaries, boundaries, longest, longest, softmax_scale=scale, causal=is_causal)
        # FlashAttention 3 gave the log-sum-exp beside it in its first versions.
        return torch.as_tensor(out[0] if isinstance(out, tuple) else out)

    return attend


def _torch_varlen() -> _Kernel:
    from torch.nn.attention.varlen import varlen_attn

    # torch 2.13 has all of these; 2.10 and 2.11 had `is_causal`, and neither groups of heads nor another scale than 1 / sqrt(D).
    known = inspect.signature(varlen_attn).parameters

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, boundaries: torch.Tensor, longest: int, is_causal: bool, scale: float
    ) -> torch.Tensor:
        options: dict[str, Any] = {}
        if "is_causal" in known:
            options["is_causal"] = is_causal
        elif is_causal:
            options["window_size"] = (-1, 0)
        if "scale" in known:
            options["scale"] = scale
        else:
            q = q * (scale * q.shape[-1] ** 0.5)
        if q.shape[1] != k.shape[1]:
            if "enable_gqa" in known:
                options["enable_gqa"] = True
            else:
                k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        return torch.as_tensor(varlen_attn(q, k, v, boundaries, boundaries, longest, longest, **options))

    return attend


def _forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it, tensors [1, heads, S, D]; what comes without boundaries is no packed row, and goes the usual way."""
    if cu_seq_lens_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return plain
    is_causal = module.is_causal if is_causal is None else is_causal
    longest = max_length_q if max_length_q is not None else int(cu_seq_lens_q.diff().max())
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend_in_segments(q, k, v, cu_seq_lens_q, longest, bool(is_causal), scaling)[None], None


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(SEGMENTS, _forward)
    AttentionMaskInterface.register(SEGMENTS, sdpa_mask)


def _configs(model: Any) -> tuple[Any, Any]:
    """The configurations that the vision tower's and the language model's layers look their implementation up in."""
    body = next(module for module in model.modules() if hasattr(module, "visual") and hasattr(module, "language_model"))
    return body.visual.blocks[0].attn.config, body.language_model.layers[0].self_attn.config
