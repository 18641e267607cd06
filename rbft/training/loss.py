"""The loss: sum of token cross-entropies over the supervised positions (paper 3; readings, 8 and 9)."""

from __future__ import annotations

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

    def forward(self, labels: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Sum over supervised tokens of -log p(token), float32 scalar. `labels` [B, L] holds `IGNORE_INDEX` elsewhere."""
        hidden_BLH = self.model.model(**inputs, use_cache=False).last_hidden_state
        supervised_BL = labels[:, 1:] != IGNORE_INDEX
        logits_NV = self.model.lm_head(hidden_BLH[:, :-1][supervised_BL]).float()
        return nn.functional.cross_entropy(logits_NV, labels[:, 1:][supervised_BL], reduction="sum")
