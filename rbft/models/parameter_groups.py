"""Two learning rates as optimiser parameter groups, checked.

Paper 4.1: one rate for the language model and the merger, a lower one for the vision tower. Weight decay spares norms and biases, as
in the Hugging Face trainer the paper's models are fine-tuned with.
"""

from __future__ import annotations

from typing import Any

from rbft.config import OptimiserConfig
from rbft.errors import TrainingError

GROUP_NAMES = ("language", "language_no_decay", "vision", "vision_no_decay")


def build_parameter_groups(model: Any, optimiser: OptimiserConfig) -> list[dict[str, Any]]:
    """torch optimiser groups {"name", "params", "lr", "peak_lr", "weight_decay"} that hold every trainable parameter exactly once.

    Raises `TrainingError` if the model has no vision tower or no merger where they are expected, or a parameter is missed or doubled.
    """
    names: dict[str, list[str]] = {group: [] for group in GROUP_NAMES}
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in parameters.items():
        part = "vision" if _is_vision_tower(name) else "language"
        no_decay = parameter.ndim < 2 or name.endswith(".bias")
        names[f"{part}_no_decay" if no_decay else part].append(name)
    groups = [
        {
            "name": group,
            "params": [parameters[name] for name in members],
            "lr": 0.0,
            "peak_lr": optimiser.lr_vision if group.startswith("vision") else optimiser.lr_language,
            "weight_decay": 0.0 if group.endswith("no_decay") else optimiser.weight_decay,
        }
        for group, members in names.items()
        if members
    ]
    check_parameter_groups(model, groups)
    return groups


def check_parameter_groups(model: Any, groups: list[dict[str, Any]]) -> None:
    """Raise `TrainingError` unless every trainable parameter of `model` is in exactly one group, and both rates have parameters."""
    seen: dict[int, int] = {}
    for group in groups:
        for parameter in group["params"]:
            seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    trainable = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    wrong = [name for key, name in trainable.items() if seen.get(key, 0) != 1]
    if wrong or len(seen) != len(trainable):
        raise TrainingError(
            f"parameters that are not in exactly one optimiser group: {wrong[:5] or 'unknown ones'}; this is a bug, report it"
        )
    for part in ("language", "vision"):
        if not any(group["name"].startswith(part) for group in groups):
            raise TrainingError(
                f"the model has no trainable {part} parameters under the expected names; is it a Qwen2-VL or Qwen2.5-VL model?"
            )


def _is_vision_tower(name: str) -> bool:
    return "visual." in name and "visual.merger." not in name
