"""Whether a folder holds a whole model."""

from __future__ import annotations

from pathlib import Path

from rbft.doctor.check import Check
from rbft.errors import ModelError
from rbft.model_folder import require_model_folder


def check_model_folder(path: str | Path) -> Check:
    try:
        folder = require_model_folder(path)
    except ModelError as error:
        found, _, mend = str(error).rpartition("; ")
        return Check("model", "fail", found, mend)
    files = "1 file" if folder.num_shards == 1 else f"{folder.num_shards} files"
    return Check("model", "ok", f"{path}: {folder.model_type}, {folder.weight_bytes / 1e9:.3g} GB of weights in {files}")
