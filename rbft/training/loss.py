"""The loss: sum of token cross-entropies over the supervised positions (paper 3; readings, 8 and 9), weighted if the samples are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rbft.models.chat import IGNORE_INDEX


class SupervisedLoss(nn.Module):
    """A video chat model whose forward returns the summed loss, so that an engine that wraps modules (DeepSpeed) wraps this one.

    Only supervised positions go through the language head: a prompt is mostly video, and its logits would be thrown away.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, labels: torch.Tensor, token_weights: torch.Tensor | None = None, **inputs: torch.Tensor) -> torch.Tensor:
        """Sum over supervised tokens of -log p(token), float32 scalar. `labels` [B, L] holds `IGNORE_INDEX` elsewhere.

        Each token's term is multiplied by its `token_weights` [B, L] if they are given. The first token of a row, and of each sample in a
        packed row, is never predicted: its label is `IGNORE_INDEX`.
        """
        hidden_BLH = self.model.model(**inputs, use_cache=False).last_hidden_state
        supervised_BL = labels[:, 1:] != IGNORE_INDEX
        logits_NV = self.model.lm_head(hidden_BLH[:, :-1][supervised_BL]).float()
        labels_N = labels[:, 1:][supervised_BL]
        if token_weights is None:
            return nn.functional.cross_entropy(logits_NV, labels_N, reduction="sum")
        losses_N = nn.functional.cross_entropy(logits_NV, labels_N, reduction="none")
        return (losses_N * token_weights[:, 1:][supervised_BL]).sum()


def supervised_totals(batch: Mapping[str, torch.Tensor]) -> tuple[float, float]:
    """The number of supervised tokens in `batch`, keyword arguments of `SupervisedLoss`, and the sum of their weights (1 each if none)."""
    supervised_BL = batch["labels"][:, 1:] != IGNORE_INDEX
    num_tokens = float(supervised_BL.sum())
    if "token_weights" not in batch:
        return num_tokens, num_tokens
    return num_tokens, float(batch["token_weights"][:, 1:][supervised_BL].double().sum())
