"""A Hugging Face video classifier: loaded with a new head for a task's labels, saved, and loaded again as it was saved.

Any model works that `AutoModelForVideoClassification` knows, or that registers itself there: one that takes a clip as [B, T, C, H, W] under
its `main_input_name`, has its size as `image_size` or `crop_size` in its configuration, and its head as `classifier`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rbft.baselines.clip_encoder import ClipEncoder, ClipForm
from rbft.errors import ModelError
from rbft.model_folder import require_classifier_folder
from rbft.models.load import TASK_CARD, make_card, read_card
from rbft.models.video import register_video_models
from rbft.seeds import derive_seed
from rbft.task import Task

_NUM_FRAMES = ("num_frames", "frames_per_clip")
"""What configurations call it."""
_SIZE = ("image_size", "crop_size")
_CLIPS = "clips"
"""Key of the task card: the `ClipForm`."""


@dataclass(frozen=True)
class VideoClassifier:
    """A model, on the CPU in float32 when it was loaded, and how clips become its input."""

    model: Any
    encoder: ClipEncoder

    def logits(self, pixels_BTCHW: torch.Tensor) -> torch.Tensor:
        """float32 [B, number of labels]."""
        return classify(self.model, self.model.main_input_name, pixels_BTCHW)


def classify(model: Any, input_name: str, pixels_BTCHW: torch.Tensor) -> torch.Tensor:
    """The logits of `model`, which may be wrapped, float32 [B, number of labels]."""
    logits: torch.Tensor = model(**{input_name: pixels_BTCHW}).logits
    return logits.float()


def load_for_training(
    path: str | Path,
    labels: Sequence[str],
    seed: int,
    num_frames: int | None = None,
    fit: Literal["crop", "stretch"] = "crop",
    num_clips: int = 1,
    drop_path_rate: float | None = None,
) -> VideoClassifier:
    """The model in the folder `path` with a new head for `labels`, drawn by `seed`, also where it had one of as many classes.

    A checkpoint of pretraining lacks its head and what belongs to it alone (a norm, a pooler), which are drawn too. Raises `ModelError` if
    anything else is missing or does not fit: then the folder is of another model, or its weights are for another number of frames.
    """
    from transformers import AutoConfig

    require_classifier_folder(path)
    config = _read(path, AutoConfig)
    frames_key = _frames_key(config, path)
    own_frames = getattr(config, frames_key)
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    setattr(config, frames_key, num_frames or own_frames)
    if drop_path_rate is not None:
        if not hasattr(config, "drop_path_rate"):
            raise ModelError(f"{path}: a {config.model_type} has no drop path; leave drop_path_rate out of the configuration")
        config.drop_path_rate = drop_path_rate
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "head"))
        model, told = _load(path, config)
        _draw_head(model, path)
    _require_all_but_the_head(model, told, path, own_frames if num_frames not in (None, own_frames) else None)
    return VideoClassifier(model, _encoder(path, config, ClipForm(getattr(config, frames_key), _size(config, path), fit, num_clips)))


def load_trained(folder: str | Path) -> VideoClassifier:
    """The model that `save_classifier` wrote; raises `ModelError` if `folder` does not hold one whole."""
    from transformers import AutoConfig

    require_classifier_folder(folder)
    read_card(folder)
    try:
        form = ClipForm(**json.loads((Path(folder) / TASK_CARD).read_text())[_CLIPS])
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder}/{TASK_CARD}: is not that of a video classifier ({error!r}); give its `final` folder") from None
    config = _read(folder, AutoConfig)
    model, told = _load(folder, config)
    if wrong := sorted([*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])]):
        raise ModelError(f"{folder}: {wrong[0]} and {len(wrong) - 1} other weights are missing or of another shape; train the model again")
    return VideoClassifier(model, _encoder(folder, config, form))


def save_classifier(classifier: VideoClassifier, task: Task, lineage: dict[str, Any], folder: Path, backend: str = "auto") -> None:
    """Write model, processor and task card to `folder`, which `load_trained` reads, and transformers too."""
    classifier.model.save_pretrained(folder)
    classifier.encoder.processor.save_pretrained(folder)
    card = make_card(task, classifier.encoder.video_spec(backend), lineage) | {_CLIPS: classifier.encoder.form.as_dict()}
    (folder / TASK_CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _encoder(path: str | Path, config: Any, form: ClipForm) -> ClipEncoder:
    from transformers import AutoVideoProcessor

    processor = _read(path, AutoVideoProcessor)
    cut = processor.crop_size if processor.do_center_crop else processor.size
    found = (cut["height"], cut["width"]) if cut is not None else (None, None)
    if form.fit == "crop" and found != (form.size, form.size):
        raise ModelError(
            f"{path}: its processor makes frames of {found[0]} x {found[1]}, its config.json wants {form.size} x {form.size}; correct one "
            "of them, or set fit: stretch"
        )
    return ClipEncoder(processor, form)


def _load(path: str | Path, config: Any) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForVideoClassification

    try:
        model, told = AutoModelForVideoClassification.from_pretrained(
            str(path), config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{path}: {_first_line(error)}; give the folder of a video classifier") from None
    return model, told


def _read(path: str | Path, kind: Any) -> Any:
    register_video_models()
    try:
        return kind.from_pretrained(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: {kind.__name__} cannot read it: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _frames_key(config: Any, path: str | Path) -> str:
    key = next((key for key in _NUM_FRAMES if hasattr(config, key)), None)
    if key is None:
        raise ModelError(f"{path}: its config.json has none of {', '.join(_NUM_FRAMES)}; give the folder of a video classifier")
    if getattr(config, key) % 2:
        raise ModelError(f"{path}: it takes {getattr(config, key)} frames, and clips have an even number; set num_frames to an even one")
    return key


def _size(config: Any, path: str | Path) -> int:
    found = next((getattr(config, key) for key in _SIZE if hasattr(config, key)), None)
    height, width = found if isinstance(found, list | tuple) else (found, found)
    if not isinstance(height, int) or height != width:
        raise ModelError(f"{path}: its config.json has no square {' or '.join(_SIZE)} ({found!r}); give a model of square frames")
    return height


def _draw_head(model: Any, path: str | Path) -> None:
    head = getattr(model, "classifier", None)
    if not isinstance(head, nn.Linear):
        raise ModelError(f"{path}: {type(model).__name__} has no linear layer `classifier`, which would get the task's labels")
    nn.init.normal_(head.weight, std=getattr(model.config, "initializer_range", 0.02))
    nn.init.zeros_(head.bias)


def _require_all_but_the_head(model: Any, told: dict[str, Any], path: str | Path, own_frames: int | None) -> None:
    """Loading would silently draw what is missing or does not fit."""
    missing = [key for key in told["missing_keys"] if key.startswith(f"{model.base_model_prefix}.")]
    if missing:
        raise ModelError(f"{path}: lacks {len(missing)} weights, e.g. {missing[0]}; give a folder of the whole model")
    other = sorted(key for key, *_ in told["mismatched_keys"] if not key.startswith("classifier."))
    if other and own_frames is not None:
        raise ModelError(f"{path}: {other[0]} is for {own_frames} frames; leave num_frames out of the configuration, or set it to that")
    if other:
        raise ModelError(f"{path}: {other[0]} has another shape than its config.json says; copy both from one checkpoint")
