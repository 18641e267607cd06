"""LoRA through PEFT: adapters put into a model, written beside it in PEFT's format, merged into its weights.

The adapters are injected into the model's own modules, so that the model stays of its class and all that knows its structure (loss,
positions, gradient checkpointing) is none the wiser. While it trains, nothing but they change: what is written at the end is the adapter,
and whole weights are always the base's with an adapter merged in.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rbft.config import LoraConfig
from rbft.errors import ModelError
from rbft.models.card import MODEL_CARD
from rbft.models.load import TASK_CARD, load_model
from rbft.models.parameter_groups import part_of
from rbft.seeds import derive_seed

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_NAME = "default"
"""PEFT's for the only adapter of a model."""
_PREFIX = "base_model.model."
"""What PEFT puts before the names of modules in a file."""


def add_adapters(model: Any, lora: LoraConfig, seed: int) -> None:
    """Put adapters that change nothing yet into `model` and freeze all other weights; the same ones for the same `seed` everywhere.

    Raises `ModelError` if `lora` names layers that the model does not have.
    """
    import peft

    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=_pattern(adapted_layers(model, lora)),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "lora"))
        peft.inject_adapter_in_model(config, model, _NAME)


def is_adapter(name: str) -> bool:
    """Whether the parameter `name` is an adapter's."""
    return ".lora_" in name


def adapted_layers(model: Any, lora: LoraConfig) -> dict[str, list[str]]:
    """Part ("language", "vision") -> the names of the linear layers of `model` that `lora` asks adapters for.

    Raises `ModelError` if it asks for one that is not there.
    """
    linear: dict[str, list[str]] = {"language": [], "vision": []}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and part_of(f"{name}.") in linear:
            linear[part_of(f"{name}.")].append(name)
    chosen = {}
    for part, names in linear.items():
        wanted = getattr(lora, part)
        known = {name.rpartition(".")[2] for name in names}
        if wanted != "all" and (unknown := sorted(set(wanted) - known)):
            raise ModelError(f"training.lora.{part}: the model has no linear layers {unknown[0]} there; it has {', '.join(sorted(known))}")
        chosen[part] = [name for name in names if wanted == "all" or name.rpartition(".")[2] in wanted]
    return chosen


def save_adapter(model: Any, weights: Mapping[str, torch.Tensor], base: str, folder: Path, card: dict[str, Any], readme: str) -> None:
    """Write the adapter that `add_adapters` put into `model` to `folder`, as PEFT does, with the task card and the model card `readme`.

    `weights` are its tensors by their names in the model, `base` the folder the model came from.
    """
    from safetensors.torch import save_file

    config = copy.copy(model.peft_config[_NAME])
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(str(folder))
    tensors = {f"{_PREFIX}{name.replace(f'.{_NAME}.', '.')}": weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (folder / TASK_CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    (folder / MODEL_CARD).write_text(readme, encoding="utf-8")


def merge_adapter(folder: Path, base: str) -> Any:
    """The model in `base` with the adapter in `folder` merged into its weights, in the adapter's precision, on the CPU.

    Raises `ModelError` if there is no adapter or it does not fit the base.
    """
    from peft import PeftModel
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as stream:
            dtypes = {stream.get_tensor(name).dtype for name in stream.keys()}  # noqa: SIM118  # it is no dict
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder}: no adapter can be read from it ({error}); give a folder with {ADAPTER_WEIGHTS}") from None
    model = load_model(base, "bfloat16" if dtypes == {torch.bfloat16} else "float32")
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False)
        return adapted.merge_and_unload(safe_merge=True)
    except (ValueError, KeyError, RuntimeError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{folder}: this adapter does not fit the model {base}: {first_line}") from None


def _pattern(chosen: Mapping[str, list[str]]) -> str:
    """A regular expression of the chosen layers' names: PEFT's lists go by the last part alone, and both towers have a gate_proj."""
    patterns = []
    for names in chosen.values():
        # "…layers.0.mlp.up_proj" -> "…layers.N.mlp.up_proj": as many patterns as kinds of layers, not as layers.
        patterns += sorted({re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name)) for name in names})
    return "|".join(patterns)
