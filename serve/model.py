"""Which model folder answers, and what it says about itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rbft import artifacts, storage
from rbft.api import ModelVersion
from rbft.config import RunConfig
from rbft.errors import ArtifactError, ConfigError, ModelError
from rbft.evaluation.calibration import Calibration, read_calibration
from rbft.keys import read_keys
from rbft.layout import RunLayout
from rbft.model_folder import require_model_folder
from rbft.model_store import require_fingerprint
from rbft.models.load import TASK_CARD, read_card, read_card_calibration
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
    calibration: Calibration | None = None
    """The one that the configuration names."""
    calibration_of_run: Calibration | None = None
    """The one that the run has for this very model; what its task card holds goes before it."""


@dataclass(frozen=True)
class ServedModel:
    """A local model folder and what serving it needs."""

    folder: Path
    version: ModelVersion
    task: Task
    spec: VideoSpec
    lineage: dict[str, Any]
    """Of its task card; empty without one."""
    calibration: Calibration | None = None


def find_model(config: RunConfig, folder: str | None = None) -> ModelSource:
    """The model of the run's `serve.system`, or the one in `folder`.

    Raises `ArtifactError` if the run has not trained it (to its end) and `ModelError` if a local folder is not a model.
    """
    if folder is not None:
        name = folder.rstrip("/").rpartition("/")[2]
        source = ModelSource(folder, name, has_card=storage.exists(f"{folder}/{TASK_CARD}"))
    elif config.serve.system == "zero-shot":
        source = ModelSource(config.model.path, f"{config.name}/zero-shot", has_card=False)
        source = replace(source, calibration_of_run=_calibration_of_run(config, source.uri))
    else:
        source = ModelSource(_trained(config), f"{config.name}/{config.serve.system}", has_card=True)
        source = replace(source, calibration_of_run=_calibration_of_run(config, source.uri))
    if config.serve.calibration is not None:
        source = replace(source, calibration=read_calibration(config.serve.calibration))
    if storage.is_local(source.uri):
        path = storage.local_path(source.uri)
        require_model_folder(path)
        if source.has_card:
            read_card(path)
        return replace(source, uri=str(path))  # absolute: a replica may run elsewhere
    return source


def what_to_serve(config: RunConfig, folder: str | None) -> tuple[RunConfig, ModelSource]:
    """The model in `folder`, by default the run's own, and the configuration to serve it with.

    Raises what `find_model` does, and `ConfigError` if the file that `serve.keys` names holds no key.
    """
    if config.serve.keys is not None and not read_keys(config.serve.keys):
        raise ConfigError(f"{config.serve.keys}: holds no key, so that nobody could ask; make one with `rbft keys add`")
    source = find_model(config, folder)
    if folder is not None:  # a canary's label is that of the run's model
        config = config.model_copy(update={"serve": config.serve.model_copy(update={"canary": ()})})
    return config, source


def open_model(source: ModelSource, folder: Path, config: RunConfig) -> ServedModel:
    """The model of `source`, whose local copy is `folder`; raises `ModelError`, also if `model.fingerprint` says that it is another one."""
    require_model_folder(folder)
    task, spec, lineage = read_card(folder) if source.has_card else (config.task, config.video.spec(), {})
    version = ModelVersion(name=source.name, fingerprint=artifacts.model_fingerprint(folder))
    if config.model.fingerprint is not None and not source.has_card:  # of a trained model, training held its base against it
        require_fingerprint(source.uri, version.fingerprint, config.model.fingerprint)
    calibration = source.calibration
    if calibration is None and source.has_card and (fields := read_card_calibration(folder)) is not None:
        calibration = Calibration.model_validate(fields)
    calibration = calibration or source.calibration_of_run
    if calibration is not None and calibration.labels != task.labels:
        raise ModelError(
            f"{folder}: its labels are {', '.join(task.labels)}, and the calibration is of {', '.join(calibration.labels)}; set "
            "serve.calibration to its own"
        )
    return ServedModel(folder, version, task, spec, lineage, calibration)


def _calibration_of_run(config: RunConfig, model: str) -> Calibration | None:
    """What the run fitted for `model`; None if it fitted nothing, or that for a model which has been trained anew since."""
    run_json = RunLayout(config.run_dir).run_json
    artifact = storage.read_json(run_json).get("artifacts", {}) if storage.exists(run_json) else {}
    folder = artifact.get(f"calibration/{config.serve.system}")
    if folder is None:
        return None
    layout = RunLayout(config.run_dir)
    folder = layout.calibration(config.serve.system, folder.rstrip("/").rpartition("/")[2])  # the run may have been moved
    if not artifacts.is_complete(folder):
        return None
    fitted_on = artifacts.read_marker(folder)["lineage"].get("model")
    is_same = fitted_on is not None and fitted_on == _fingerprint(model)
    return read_calibration(f"{folder}/calibration.json") if is_same else None


def _fingerprint(model: str) -> str:
    if artifacts.is_complete(model):
        return str(artifacts.read_marker(model)["fingerprint"])
    with storage.local_folder(model) as folder:
        return artifacts.model_fingerprint(folder)


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
