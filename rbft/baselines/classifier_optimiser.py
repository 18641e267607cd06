"""AdamW for a video classifier: which weights learn, how fast, and which decay."""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from rbft.config import VideoClassifierConfig
from rbft.training.schedule import cosine_with_warmup

_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks)\.(\d+)\.")
"""How a layer of the body is named in transformers' video models, and in ours."""
_FIRST = re.compile(r"embedding|class_token|cls_token")


def leave_out_unused(model: Any, input_name: str, pixels_BTCHW: torch.Tensor) -> None:
    """Freeze the weights that no answer depends on (V-JEPA 2's predictor): workers that wait for their gradients would wait for ever."""
    was_training = model.training
    model.eval()  # statistics of batches must not learn from it
    model(**{input_name: pixels_BTCHW}).logits.sum().backward()
    model.train(was_training)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def build_optimiser(model: Any, classifier: VideoClassifierConfig) -> torch.optim.AdamW:
    """Vectors (biases, norms, tokens of one position), and what the model names in `no_weight_decay`, do not decay."""
    undecayed = tuple(getattr(model, "no_weight_decay", ()))
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    num_layers = max((depth for name in learning if (depth := _layer(name)) is not None), default=0)
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for name, parameter in learning.items():
        decays = parameter.squeeze().ndim > 1 and not name.endswith(undecayed or ("\0",))
        scale = classifier.layer_decay ** (num_layers + 1 - _depth(name, num_layers))
        groups.setdefault((decays, scale), []).append(parameter)
    made = [
        {"params": parameters, "weight_decay": classifier.weight_decay if decays else 0.0, "scale": scale}
        for (decays, scale), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]
    return torch.optim.AdamW(made, lr=classifier.learning_rate, betas=classifier.betas, eps=classifier.eps)


def _layer(name: str) -> int | None:
    """1 for the first layer, and so on; None outside of the layers."""
    found = _LAYER.search(name)
    return None if found is None else int(found[1]) + 1


def _depth(name: str, num_layers: int) -> int:
    """0 for what comes before the layers, one more than they are for what comes after: as in BEiT, and in InternVideo2."""
    depth = _layer(name)
    if depth is not None:
        return depth
    return 0 if _FIRST.search(name) else num_layers + 1


def rate_at(classifier: VideoClassifierConfig, step: int, num_steps: int) -> float:
    """Of the head, at optimiser step `step` (0-based) of `num_steps`."""
    is_warm = step >= math.ceil(classifier.warmup_ratio * num_steps)
    least = classifier.final_learning_rate if is_warm else classifier.initial_learning_rate
    rate = least + (classifier.learning_rate - least) * cosine_with_warmup(step, num_steps, classifier.warmup_ratio)
    batch = classifier.learning_rate_batch
    return rate if batch is None else rate * classifier.global_batch_size / batch


def set_rate(optimiser: torch.optim.AdamW, classifier: VideoClassifierConfig, step: int, num_steps: int) -> float:
    """Set and give back the learning rate (`rate_at`)."""
    rate = rate_at(classifier, step, num_steps)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]
    return rate
