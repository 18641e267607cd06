"""Layers that UniFormerV2 and InternVideo2 share. B clips, T frames or tubelets, N tokens, D channels, H heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class TubeletEmbedding(nn.Linear):
    """Tubelets of a clip to tokens: a 3-D convolution whose patches do not overlap in space, as one matrix product.

    The weight is that of the convolution, [D, 3, frames, patch, patch], flattened behind D.
    """

    def __init__(self, size: int, patch: int, frames: int = 1, stride: int = 1, padding: int = 0, *, bias: bool) -> None:
        """`frames` of `stride` frames apart make a tubelet; `padding` blank frames come before and after the clip."""
        super().__init__(3 * frames * patch * patch, size, bias=bias)
        self.patch, self.frames, self.stride, self.padding = patch, frames, stride, padding

    def forward(self, pixels_BTCHW: torch.Tensor) -> torch.Tensor:
        """[B, T', N, D], N tokens a tubelet, row by row."""
        if self.padding:
            pixels_BTCHW = pad(pixels_BTCHW, (0, 0, 0, 0, 0, 0, self.padding, self.padding))
        tubelets = pixels_BTCHW.unfold(1, self.frames, self.stride)  # [B, T', C, height, width, frames]
        squares = tubelets.unflatten(4, (-1, self.patch)).unflatten(3, (-1, self.patch))
        in_order = squares.permute(0, 1, 3, 5, 2, 7, 4, 6)  # [B, T', rows, columns, C, frames, patch, patch]
        return super().forward(in_order.flatten(4).flatten(2, 3))


class SelfAttention(nn.Module):
    """Among the tokens of each sequence, by the kernel that transformers was told to use: SDPA's, unless another one."""

    def __init__(self, config: Any, *, bias: bool, norm: Callable[[], nn.Module] = nn.Identity) -> None:
        """`norm` makes what normalises queries, and keys, of all heads together."""
        super().__init__()
        self.config, self.num_heads = config, config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=bias)
        self.query_norm, self.key_norm = norm(), norm()
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, tokens_BND: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(tokens_BND).chunk(3, dim=-1)
        query, key = self.query_norm(query), self.key_norm(key)
        # Autocast leaves norms in float32, in which there are no fused kernels.
        parts = (query.to(value.dtype), key.to(value.dtype), value)
        heads = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, _eager)
        attended_BNHD, _ = attend(self, *heads, None, is_causal=False)
        return self.output(attended_BNHD.flatten(2))


def _eager(
    _module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: None, **_how: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    weights = ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(dim=-1)
    return (weights @ value).transpose(1, 2), weights


class PoolingAttention(nn.Module):
    """Cross-attention of one query a clip to all of its tokens.

    With one query nobody needs the projected keys and values of every token. The query is taken to the tokens' space instead, head by head,
    q·(W_k x) = (W_k' q)·x, and the weighted mean of the tokens is projected, W_v Σ a x = Σ a W_v x as Σ a = 1: H·D products a token in
    place of 2·D².
    """

    def __init__(self, size: int, output_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.output = nn.Linear(size, output_size)

    def forward(self, query_BD: torch.Tensor, keys_BND: torch.Tensor, values_BND: torch.Tensor) -> torch.Tensor:
        """[B, output size]. Keys and values are tokens, to be projected."""
        heads = (self.num_heads, -1)
        query_BHd = self.query(query_BD).unflatten(-1, heads)
        query_BHd = query_BHd * query_BHd.shape[-1] ** -0.5
        key_HdD, value_HdD = (layer.weight.unflatten(0, heads) for layer in (self.key, self.value))
        shared_BH = torch.einsum("bhd,hd->bh", query_BHd, self.key.bias.unflatten(0, heads))
        scores_BHN = torch.einsum("bhd,hdc->bhc", query_BHd, key_HdD) @ keys_BND.transpose(1, 2) + shared_BH[..., None]
        means_BHD = scores_BHN.softmax(dim=-1).to(values_BND.dtype) @ values_BND
        attended_BHd = torch.einsum("bhc,hdc->bhd", means_BHD, value_HdD) + self.value.bias.unflatten(0, heads)
        return self.output(attended_BHd.flatten(1))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training leaves a branch out for a share `rate` of the clips."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        """`branch` has one entry a clip in its first dimension."""
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(branch.shape[0], *[1] * (branch.ndim - 1), device=branch.device) >= self.rate
        return branch * kept.to(branch.dtype) / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def rising(rate: float, num_layers: int) -> list[float]:
    """A rate a layer, from 0 in the first to `rate` in the last."""
    return [rate * number / max(1, num_layers - 1) for number in range(num_layers)]
