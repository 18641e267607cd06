"""Loading and saving model folders, and the task card inside them.

A model folder is self-contained: transformers and vLLM load it, and `rbft.json`, the task card, holds what else serving needs (labels,
prompts, video settings, lineage; and a calibration, if `rbft export --calibration` put one there).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rbft.errors import ModelError
from rbft.model_folder import require_model_folder
from rbft.records import VideoSpec
from rbft.task import Task

TASK_CARD = "rbft.json"
TASK_CARD_VERSION = 1


def load_model(path: str | Path, dtype: str, attention: str = "sdpa", quantised: bool = False) -> Any:
    """The `transformers` video chat model in the folder `path`, on the CPU in `dtype` ("float32" or "bfloat16").

    With `quantised` its linear layers, but the language head's, are held in 4 bits, on the current GPU. Raises `ModelError` if the folder
    holds no such model or no weights, or there is no GPU or no bitsandbytes to quantise with.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    from rbft.models.positions import use_reference_positions

    require_model_folder(path)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            str(path),
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            use_safetensors=True,
            **(_four_bits(dtype) if quantised else {}),
        )
    except (OSError, ValueError, KeyError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path}: no model can be loaded from it: {first_line}") from None
    if not hasattr(model.model, "visual"):
        raise ModelError(f"{path}: {type(model).__name__} has no vision tower; give a Qwen2-VL or Qwen2.5-VL model")
    use_reference_positions(model)
    return model


def _four_bits(dtype: str) -> dict[str, Any]:
    """What QLoRA (Dettmers et al. 2023, 3) tells `from_pretrained`."""
    import torch
    from transformers import BitsAndBytesConfig

    if not torch.cuda.is_available() or find_spec("bitsandbytes") is None:
        raise ModelError("training.lora.quantised_base needs a CUDA GPU and bitsandbytes (pip install bitsandbytes); or set it to none")
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        bnb_4bit_quant_storage=getattr(torch, dtype),  # of a kind that DeepSpeed may cast and broadcast as it does the rest
    )
    return {"quantization_config": quantisation, "device_map": {"": torch.cuda.current_device()}}


def save_model(model: Any, weights: dict[str, Any], processor: Any, folder: Path, card: dict[str, Any]) -> None:
    """Write `weights` (as safetensors, with the configuration of `model`), processor and task card to `folder`."""
    model.save_pretrained(folder, state_dict=weights)
    processor.save_pretrained(folder)
    (folder / TASK_CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")


def read_card_calibration(folder: str | Path) -> dict[str, Any] | None:
    """The fields of the `rbft.evaluation.calibration.Calibration` in the task card of the model in `folder`; None if it has none."""
    try:
        found: dict[str, Any] | None = json.loads((Path(folder) / TASK_CARD).read_text()).get("calibration")
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}/{TASK_CARD}: no task card can be read from it ({error})") from None
    return found


def make_card(task: Task, spec: VideoSpec, lineage: dict[str, Any]) -> dict[str, Any]:
    """The task card: everything about the task and the videos that a server of this model must know."""
    return {"schema_version": TASK_CARD_VERSION, "task": task.model_dump(mode="json"), "video": asdict(spec), "lineage": lineage}


def read_card(folder: str | Path) -> tuple[Task, VideoSpec, dict[str, Any]]:
    """Task, video settings and lineage of the model in `folder`; raises `ModelError` if it has no card this code can read."""
    path = Path(folder) / TASK_CARD
    try:
        card = json.loads(path.read_text())
        if card["schema_version"] != TASK_CARD_VERSION:
            raise ModelError(f"{path}: schema version {card['schema_version']}, this code reads {TASK_CARD_VERSION}; train the model again")
        return Task.model_validate(card["task"]), VideoSpec(**card["video"]), card["lineage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: no task card can be read from it ({error}); give a `final` folder of a training run") from None
