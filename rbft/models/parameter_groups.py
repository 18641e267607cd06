"""The parts of a video chat model, and two learning rates as optimiser parameter groups, checked.

Paper 4.1: one rate for the language model and the merger, a lower one for the vision tower.

Weight decay spares norms and biases. The paper does not say which trainer it used; Hugging Face's, which its models are as a rule
fine-tuned with, has that rule (`Trainer.get_decay_parameter_names`), by the names of parameters. A test holds ours against theirs, name by
name: they agree on Qwen2-VL, and on Qwen2.5-VL but for the norms of the vision tower (norm1, norm2, ln_q), which transformers 5.19 lets
decay as its patterns do not know these names. At the paper's rates that moves such a weight by some 1e-5 in a whole stage.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from rbft.config import ModelPart, OptimiserConfig
from rbft.errors import TrainingError

GROUP_NAMES = ("language", "language_no_decay", "vision", "vision_no_decay")


def part_of(name: str) -> ModelPart:
    """The part of the model that the parameter `name` belongs to; names as in Qwen2-VL and Qwen2.5-VL, with any prefix."""
    if "visual.merger." in name:
        return "merger"
    if "visual." in name:
        return "vision"
    return "embeddings" if "embed_tokens." in name or "lm_head." in name else "language"


def freeze_parts(model: Any, parts: Collection[ModelPart]) -> None:
    """Let no parameter of `parts` learn."""
    for name, parameter in model.named_parameters():
        if part_of(name) in parts:
            parameter.requires_grad_(False)


def build_parameter_groups(model: Any, optimiser: OptimiserConfig, frozen: Collection[ModelPart] = ()) -> list[dict[str, Any]]:
    """torch optimiser groups {"name", "params", "lr", "peak_lr", "weight_decay"} that hold every trainable parameter exactly once.

    `frozen` are the parts that must have none. Raises `TrainingError` if one of them has, if another part has none, or if a parameter is
    missed or doubled.
    """
    names: dict[str, list[str]] = {group: [] for group in GROUP_NAMES}
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in parameters.items():
        rate = _rate_of(part_of(name))
        shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves a partitioned parameter no shape of its own
        no_decay = len(shape) < 2 or name.endswith(".bias")
        names[f"{rate}_no_decay" if no_decay else rate].append(name)
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
    check_parameter_groups(model, groups, frozen)
    return groups


def check_parameter_groups(model: Any, groups: list[dict[str, Any]], frozen: Collection[ModelPart] = ()) -> None:
    """Raise `TrainingError` unless every trainable parameter of `model` is in exactly one group and all parts but `frozen` have some.

    A tied language head is the token embeddings' parameter, and has none of its own.
    """
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
    learning = {part_of(name) for name in trainable.values()}
    if lively := sorted(learning & set(frozen)):
        raise TrainingError(f"the model's {lively[0]} should be frozen and has trainable parameters; this is a bug, report it")
    expected: tuple[ModelPart, ...] = ("vision", "merger", "language", "embeddings")
    for part in expected:
        if part not in learning and part not in frozen:
            raise TrainingError(
                f"the model has no trainable {part} parameters under the expected names; is it a Qwen2-VL or Qwen2.5-VL model?"
            )


def _rate_of(part: ModelPart) -> Literal["vision", "language"]:
    return "vision" if part == "vision" else "language"
