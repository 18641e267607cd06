"""The loss: sum of token cross-entropies over the supervised positions (paper 3; readings, 8 and 9), weighted if the samples are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rbft.models.attention import NO_MASK, attends_packed
from rbft.models.batches import MicroBatch
from rbft.models.chat import IGNORE_INDEX
from rbft.models.last_layer import is_narrow
from rbft.models.patches import PatchLayout, patchify


class SupervisedLoss(nn.Module):
    """A video chat model whose forward returns the summed loss, so that an engine that wraps modules (DeepSpeed) wraps this one.

    Only positions that predict a supervised token go through the language head, and through what of the last layer follows its attention
    (`rbft.models.last_layer`): a prompt is mostly video, and its logits would be thrown away.
    """

    def __init__(self, model: Any, patches: PatchLayout | None = None) -> None:
        super().__init__()
        self.model = model
        self.patches = patches

    def forward(
        self, labels: torch.Tensor, token_weights: torch.Tensor | None = None, frames: torch.Tensor | None = None, **inputs: Any
    ) -> torch.Tensor:
        """Sum over supervised tokens of -log p(token), float32 scalar. `labels` [B, L] holds `IGNORE_INDEX` elsewhere.

        Each token's term is multiplied by its `token_weights` [B, L] if they are given. `inputs` are the model's; in place of
        `pixel_values_videos` there may be `frames`, uint8, which are cut into patches here (`rbft.models.batches`).
        """
        if frames is not None:
            if self.patches is None:
                raise ValueError("frames need a SupervisedLoss that knows how patches are cut")
            grids = [tuple(grid) for grid in inputs["video_grid_thw"].tolist()]
            inputs["pixel_values_videos"] = patchify(frames, grids, self.patches)
        if "cu_seq_lens_q" in inputs and attends_packed(self.model):
            inputs["attention_mask"] = NO_MASK
        # Row by row the position before each supervised token; a row's first token is predicted by nobody.
        supervised_N = nn.functional.pad(labels[:, 1:] != IGNORE_INDEX, (1, 0)).flatten().nonzero()[:, 0]
        predicting_N = supervised_N - 1
        if is_narrow(self.model):
            # Kernels do not like to be asked for nothing.
            asked_N = predicting_N if len(predicting_N) else predicting_N.new_zeros(1)
            states_NH = self.model.model(**inputs, predicting_N=asked_N, use_cache=False).last_hidden_state[0, : len(predicting_N)]
        else:
            states_NH = self.model.model(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)[predicting_N]
        logits_NV = self.model.lm_head(states_NH).float()
        labels_N = labels.flatten()[supervised_N]
        if token_weights is None:
            return nn.functional.cross_entropy(logits_NV, labels_N, reduction="sum")
        losses_N = nn.functional.cross_entropy(logits_NV, labels_N, reduction="none")
        return (losses_N * token_weights.flatten()[supervised_N]).sum()


def supervised_totals(batch: MicroBatch) -> tuple[float, float]:
    """The number of supervised tokens in `batch`, keyword arguments of `SupervisedLoss`, and the sum of their weights (1 each if none)."""
    supervised_BL = batch["labels"][:, 1:] != IGNORE_INDEX
    num_tokens = float(supervised_BL.sum())
    if "token_weights" not in batch:
        return num_tokens, num_tokens
    return num_tokens, float(batch["token_weights"][:, 1:][supervised_BL].double().sum())
