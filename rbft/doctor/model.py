"""Whether a folder holds a whole model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rbft import artifacts
from rbft.doctor.check import Check
from rbft.errors import ModelError
from rbft.model_folder import require_classifier_folder, require_model_folder

if TYPE_CHECKING:
    from rbft.config import VideoClassifierConfig


def check_model_folder(path: str | Path) -> Check:
    try:
        folder = require_model_folder(path)
    except ModelError as error:
        found, _, mend = str(error).rpartition("; ")
        return Check("model", "fail", found, mend)
    files = "1 file" if folder.num_shards == 1 else f"{folder.num_shards} files"
    told = f"{path}: {folder.model_type}, {folder.weight_bytes / 1e9:.3g} GB of weights in {files}"
    return Check("model", "ok", f"{told}; model.fingerprint {artifacts.model_fingerprint(path)}")


def check_video_classifier(classifier: VideoClassifierConfig) -> Check:
    """Whether its folder holds a model; if not, which checkpoint to get and where it goes."""
    from rbft.config.classifier_checkpoints import how_to_get

    name = f"model {classifier.name}"
    try:
        folder = require_classifier_folder(classifier.path)
    except ModelError as error:
        found, _, mend = str(error).rpartition("; ")
        if not Path(classifier.path).exists():
            mend = how_to_get(classifier.recipe, classifier.path)
        return Check(name, "fail", found, mend)
    return Check(name, "ok", f"{classifier.path}: {folder.model_type}, {folder.weight_bytes / 1e9:.3g} GB of weights")
