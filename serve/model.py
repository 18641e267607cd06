"""Which model folder answers, and what it says about itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rbft import artifacts, storage
from rbft.api import ModelVersion
from rbft.config import RunConfig
from rbft.errors import ArtifactError
from rbft.layout import RunLayout
from rbft.model_folder import require_model_folder
from rbft.models.load import TASK_CARD, read_card
from rbft.records import VideoSpec
from rbft.task import Task


@dataclass(frozen=True)
class ModelSource:
    """Where the model is, before it has been opened."""

    uri: str
    """A folder, local or on any pyarrow filesystem."""
    name: str
    has_card: bool
    """Whether task and video settings come from the folder's task card; else from the run's configuration."""


@dataclass(frozen=True)
class ServedModel:
    """A local model folder and what serving it needs."""

    folder: Path
    version: ModelVersion
    task: Task
    spec: VideoSpec
    lineage: dict[str, Any]
    """Of its task card; empty without one."""


def find_model(config: RunConfig, folder: str | None = None) -> ModelSource:
    """The model of the run's `serve.system`, or the one in `folder`.

    Raises `ArtifactError` if the run has not trained it (to its end) and `ModelError` if a local folder is not a model.
    """
    if folder is not None:
        name = folder.rstrip("/").rpartition("/")[2]
        source = ModelSource(folder, name, has_card=storage.exists(f"{folder}/{TASK_CARD}"))
    elif config.serve.system == "zero-shot":
        source = ModelSource(config.model.path, f"{config.name}/zero-shot", has_card=False)
    else:
        source = ModelSource(_trained(config), f"{config.name}/{config.serve.system}", has_card=True)
    if storage.is_local(source.uri):
        path = storage.local_path(source.uri)
        require_model_folder(path)
        if source.has_card:
            read_card(path)
        return replace(source, uri=str(path))  # absolute: a replica may run elsewhere
    return source


def open_model(source: ModelSource, folder: Path, config: RunConfig) -> ServedModel:
    """The model of `source`, whose local copy is `folder`; raises `ModelError`."""
    require_model_folder(folder)
    task, spec, lineage = read_card(folder) if source.has_card else (config.task, config.video.spec(), {})
    version = ModelVersion(name=source.name, fingerprint=artifacts.model_fingerprint(folder))
    return ServedModel(folder, version, task, spec, lineage)


def _trained(config: RunConfig) -> str:
    layout, system = RunLayout(config.run_dir), config.serve.system
    hint = "run the pipeline first (`make demo` for the demo, else python ray_jobs/pipeline.py --config ...), or give --model FOLDER"
    if not storage.exists(layout.run_json):
        raise ArtifactError(f"{layout.run_json}: no such file, the run {config.name} has not been made here; {hint}")
    stage = storage.read_json(layout.run_json).get("artifacts", {}).get(f"train/{system}/classify")
    if stage is None:
        raise ArtifactError(f"{layout.run_json}: the run {config.name} has trained no {system} model yet; {hint}")
    # The run's folder may have been moved since it was written: only the fingerprint of the stage is taken from there.
    final = layout.train(system, "classify", stage.rstrip("/").rpartition("/")[2]) + "/final"
    if not artifacts.is_complete(final):
        raise ArtifactError(f"{final}: not complete, its training was cut short; {hint}")
    return final
