"""AdamW for a video classifier: which weights learn, how fast, and which decay."""

from __future__ import annotations

from typing import Any

import torch

from rbft.config import VideoClassifierConfig
from rbft.training.schedule import cosine_with_warmup


def leave_out_unused(model: Any, input_name: str, pixels_BTCHW: torch.Tensor) -> None:
    """Freeze the weights that no answer depends on (V-JEPA 2's predictor): workers that wait for their gradients would wait for ever."""
    model(**{input_name: pixels_BTCHW}).logits.sum().backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def build_optimiser(model: Any, classifier: VideoClassifierConfig) -> torch.optim.AdamW:
    """Vectors (biases, norms, tokens of one position) do not decay."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decaying = [parameter for parameter in learning if parameter.squeeze().ndim > 1]
    others = [parameter for parameter in learning if parameter.squeeze().ndim <= 1]
    groups = [{"params": decaying, "weight_decay": classifier.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=classifier.learning_rate, betas=classifier.betas, eps=classifier.eps)


def set_rate(optimiser: torch.optim.AdamW, classifier: VideoClassifierConfig, step: int, num_steps: int) -> float:
    """Set and give back the learning rate of optimiser step `step` (0-based) of `num_steps`."""
    rate = classifier.learning_rate * cosine_with_warmup(step, num_steps, classifier.warmup_ratio)
    for group in optimiser.param_groups:
        group["lr"] = rate
    return rate
