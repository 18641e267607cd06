"""Model folders taken out of a run: a copy of `final/`, or an adapter merged with its base; hashes are held against what was written.

    export_model("runs/x/train/rb-ft/classify/final", "/models/mine")
    export_model("runs/x/train/rb-ft/classify/adapter", "/models/mine", base="/data/models/Qwen2.5-VL-7B-Instruct")

The target is a folder on any pyarrow filesystem. It carries the marker of its source: the same model, by the same fingerprint. It has the
source's model card (`README.md`); a source that has none, of an older version, gets one made of its task card.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rbft import artifacts, storage
from rbft.errors import ArtifactError, ModelError
from rbft.model_folder import require_model_folder
from rbft.models.card import MODEL_CARD, model_card
from rbft.models.load import TASK_CARD, read_card

ADAPTER_CONFIG = "adapter_config.json"


def export_model(source: str, target: str, base: str | None = None, calibration: Mapping[str, Any] | None = None) -> str:
    """Copy the model folder `source`, or merge the adapter folder `source`, to `target`; what was done, in words.

    `base` is where the adapter's base model is now, if not where it was in training. `calibration`, the fields of a
    `rbft.evaluation.calibration.Calibration`, goes into the task card of `target`, where the service finds it. Raises `ModelError` if a
    folder is no model, the base is not the one that the adapter was trained on or the calibration is of other labels, and `ArtifactError`
    if bytes have changed or `target` holds something.
    """
    folder = Path(source)
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    if not is_adapter:
        if base is not None:
            raise ModelError(f"{source}: is no adapter (no {ADAPTER_CONFIG}), so that it needs no base; leave --base out")
        if not (folder / "config.json").is_file() and (folder / "final").is_dir():
            raise ModelError(f"{source}: is a stage, not a model; give {folder / 'final'}, or {folder / 'adapter'} if it has one")
        require_model_folder(folder)
    if calibration is not None:
        _check_labels(folder, calibration)
    artifacts.verify(folder)
    marker = artifacts.read_marker(source)
    _require_free(target, marker["fingerprint"])
    if not is_adapter:
        storage.make_folder(target)
        parts = dict(marker["parts"])
        for name in parts:  # The source's marker stays behind: the target's is written last.
            storage.upload_folder(folder / name, f"{target}/{name}")
        with tempfile.TemporaryDirectory(prefix="rbft-export-") as changed:
            if calibration is not None:
                _write_calibrated_card(folder, Path(changed), calibration)
            if MODEL_CARD not in parts and TASK_CARD in parts:
                _write_model_card(folder, Path(changed))
            parts |= artifacts.folder_hashes(Path(changed))
            for path in Path(changed).iterdir():
                storage.upload_folder(path, f"{target}/{path.name}")
        _mark(target, marker["fingerprint"], parts, marker["lineage"])
        return f"copied {len(marker['parts'])} files of {source} to {target}"
    base = base or str(json.loads((folder / ADAPTER_CONFIG).read_text())["base_model_name_or_path"])
    _check_base(folder, base, marker["lineage"].get("base"))
    with tempfile.TemporaryDirectory(prefix="rbft-export-", dir=_beside(target)) as merged:
        _write_merged(folder, base, Path(merged))
        if calibration is not None:
            _write_calibrated_card(folder, Path(merged), calibration)
        parts = artifacts.folder_hashes(Path(merged))
        storage.make_folder(target)
        storage.upload_folder(Path(merged), target)
    _mark(target, marker["fingerprint"], parts, marker["lineage"])
    return f"merged the adapter {source} into {base}: {target}"


def _require_free(target: str, fingerprint: str) -> None:
    """Raise `ArtifactError` if `target` holds anything."""
    if artifacts.is_complete(target):
        found = artifacts.read_marker(target)["fingerprint"]
        raise ArtifactError(
            f"{target}: holds a model already ({'this one' if found == fingerprint else 'another one'}); choose another target"
        )
    if storage.is_local(target) and storage.local_path(target).is_dir() and any(storage.local_path(target).iterdir()):
        raise ArtifactError(f"{target}: is not empty and no whole model of ours; delete it or choose another target")


def _mark(target: str, fingerprint: str, parts: dict[str, Any], lineage: dict[str, Any]) -> None:
    """Write the marker, and read what was written where that costs no transfer."""
    artifacts.mark_complete(target, fingerprint, parts, lineage)
    if storage.is_local(target):
        artifacts.verify(storage.local_path(target))


def _check_base(adapter: Path, base: str, expected: str | None) -> None:
    require_model_folder(base)
    if artifacts.is_complete(base):
        artifacts.verify(Path(base))
    if expected is not None and (found := artifacts.model_fingerprint(base)) != expected:
        raise ModelError(
            f"{adapter}: was trained on the model {expected}, and {base} is {found}; give the folder of the right one as --base"
        )


def _check_labels(folder: Path, calibration: Mapping[str, Any]) -> None:
    labels = read_card(folder)[0].labels
    if tuple(calibration["labels"]) != labels:
        raise ModelError(
            f"{folder}: is a model of {', '.join(labels)}, and the calibration is of {', '.join(calibration['labels'])}; give its own"
        )


def _write_calibrated_card(folder: Path, target: Path, calibration: Mapping[str, Any]) -> None:
    card = json.loads((folder / TASK_CARD).read_text()) | {"calibration": dict(calibration)}
    (target / TASK_CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")


def _beside(target: str) -> Path | None:
    """Where whole weights may lie for a while: on the target's disk, as there may be no room in /tmp."""
    if not storage.is_local(target):
        return None
    parent = storage.local_path(target).parent
    parent.mkdir(parents=True, exist_ok=True)
    return parent


def _write_merged(adapter: Path, base: str, folder: Path) -> None:
    from transformers import AutoProcessor

    from rbft.models.adapters import merge_adapter
    from rbft.models.load import save_model

    model = merge_adapter(adapter, base)
    save_model(
        model, dict(model.named_parameters()), AutoProcessor.from_pretrained(base), folder, json.loads((adapter / TASK_CARD).read_text())
    )
    _write_model_card(adapter, folder)


def _write_model_card(source: Path, target: Path) -> None:
    """That of `source`; one of what its task card tells where it has none."""
    if (source / MODEL_CARD).is_file():
        shutil.copyfile(source / MODEL_CARD, target / MODEL_CARD)
    else:
        (target / MODEL_CARD).write_text(model_card(*read_card(source)), encoding="utf-8")
