"""Which model folder answers, and what it says about itself."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rbft import artifacts, storage
from rbft.api import ModelVersion
from rbft.config import RunConfig
from rbft.config.serve import STAGE_1
from rbft.errors import ArtifactError, ConfigError, ModelError
from rbft.evaluation.calibration import Calibration, read_calibration
from rbft.keys import read_keys
from rbft.layout import RunLayout, Stage
from rbft.model_folder import require_model_folder
from rbft.model_store import on_this_node, require_fingerprint
from rbft.models.export import ADAPTER_CONFIG, export_model
from rbft.models.load import TASK_CARD, read_card, read_card_calibration
from rbft.records import VideoSpec
from rbft.systems import parse_system
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
    is_adapter: bool = False
    """Whether the folder holds an adapter, to be merged into its base."""
    writer: ModelSource | None = None
    """The model that writes the rationales; None is this one."""


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
        source = _in_folder(folder)
    elif config.serve.system == "zero-shot":
        source = ModelSource(config.model.path, f"{config.name}/zero-shot", has_card=False)
        source = replace(source, calibration_of_run=_calibration_of_run(config, source.uri))
    else:
        source = ModelSource(_trained(config, "classify"), f"{config.name}/{config.serve.system}", has_card=True)
        source = replace(source, calibration_of_run=_calibration_of_run(config, source.uri))
    if config.serve.calibration is not None:
        source = replace(source, calibration=read_calibration(config.serve.calibration))
    return _looked_at(source)


def find_writer(config: RunConfig) -> ModelSource | None:
    """The model that `serve.rationale_model` names; None if the one that classifies writes the rationales, too.

    Raises as `find_model` does, and `ConfigError` if the system that is served has no stage 1.
    """
    named, system = config.serve.rationale_model, config.serve.system
    if named is None:
        return None
    if named != STAGE_1:
        return _looked_at(replace(_in_folder(named), is_adapter=storage.exists(f"{named}/{ADAPTER_CONFIG}")))
    if parse_system(system).rationales is None:
        raise ConfigError(f"serve.rationale_model: {STAGE_1}, and {system} has no stage 1; serve a system that has one, or name a folder")
    return _looked_at(ModelSource(_trained(config, "rationale"), f"{config.name}/{system}/{STAGE_1}", has_card=True))


def _in_folder(folder: str) -> ModelSource:
    return ModelSource(folder, folder.rstrip("/").rpartition("/")[2], has_card=storage.exists(f"{folder}/{TASK_CARD}"))


def _looked_at(source: ModelSource) -> ModelSource:
    """`source` by its absolute path, as a replica may run elsewhere, if it is a whole one; one in a store is looked at once it is here."""
    if not storage.is_local(source.uri):
        return source
    path = storage.local_path(source.uri)
    if not source.is_adapter:
        require_model_folder(path)
    if source.has_card or source.is_adapter:
        read_card(path)
    return replace(source, uri=str(path))


def what_to_serve(config: RunConfig, folder: str | None) -> tuple[RunConfig, ModelSource]:
    """The model in `folder`, by default the run's own, with who writes its rationales, and the configuration to serve it with.

    Raises what `find_model` and `find_writer` do, `ModelError` if the two do not fit one another, and `ConfigError` if the file that
    `serve.keys` names holds no key.
    """
    if config.serve.keys is not None and not read_keys(config.serve.keys):
        raise ConfigError(f"{config.serve.keys}: holds no key, so that nobody could ask; make one with `rbft keys add`")
    source = find_model(config, folder)
    if (writer := find_writer(config)) is not None:
        source = replace(source, writer=writer)
        if storage.is_local(source.uri) and storage.is_local(writer.uri) and writer.has_card:
            task, spec, _ = _asked(source, Path(source.uri), config)
            _require_fit(source, task, spec, *read_card(writer.uri)[:2])
    if folder is not None:  # a canary's label is that of the run's model
        config = config.model_copy(update={"serve": config.serve.model_copy(update={"canary": ()})})
    return config, source


def open_model(source: ModelSource, folder: Path, config: RunConfig) -> ServedModel:
    """The model of `source`, whose local copy is `folder`; raises `ModelError`, also if `model.fingerprint` says that it is another one."""
    require_model_folder(folder)
    task, spec, lineage = _asked(source, folder, config)
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


def open_writer(source: ModelSource, folder: Path, served: ServedModel) -> ServedModel:
    """The model of `source.writer`, whose local copy is `folder`, beside the model `served` of `source`; raises `ModelError` if they do not
    fit one another. One without a task card is asked as `served` is."""
    assert source.writer is not None
    require_model_folder(folder)
    task, spec, lineage = read_card(folder) if source.writer.has_card else (served.task, served.spec, {})
    _require_fit(source, served.task, served.spec, task, spec)
    version = ModelVersion(name=source.writer.name, fingerprint=artifacts.model_fingerprint(folder))
    return ServedModel(folder, version, task, spec, lineage)


@contextmanager
def local_writer(writer: ModelSource, config: RunConfig) -> Iterator[Path]:
    """The model of `writer` as a local folder; of an adapter, the model that it makes of its base. A copy lives as long as the context.

    The base lies where the adapter says, or else is the run's `model.path`.
    """
    with storage.local_folder(writer.uri) as folder:
        if not writer.is_adapter:
            yield folder
            return
        named = json.loads((folder / ADAPTER_CONFIG).read_text()).get("base_model_name_or_path")
        base = named if named and Path(named).is_dir() else on_this_node(config.model).path
        with tempfile.TemporaryDirectory(prefix="rbft-merged-") as scratch:
            merged = Path(scratch) / "model"
            export_model(str(folder), str(merged), base)
            yield merged


def _asked(source: ModelSource, folder: Path, config: RunConfig) -> tuple[Task, VideoSpec, dict[str, Any]]:
    return read_card(folder) if source.has_card else (config.task, config.video.spec(), {})


def _require_fit(source: ModelSource, task: Task, spec: VideoSpec, its_task: Task, its_spec: VideoSpec) -> None:
    """Raise `ModelError` unless the writer of `source` is of the same labels, and sees videos as the model that classifies them does."""
    assert source.writer is not None
    both = f"{storage.shown(source.writer.uri)}: cannot write the rationales of {storage.shown(source.uri)}"
    if set(its_task.labels) != set(task.labels):
        raise ModelError(
            f"{both}: its labels are {', '.join(its_task.labels)}, and not {', '.join(task.labels)}; set serve.rationale_model to a model "
            "of the same task"
        )
    if its_spec != spec:
        raise ModelError(
            f"{both}: videos are decoded once, and it was trained on {its_spec}, the other on {spec}; set serve.rationale_model to a model "
            "of the same video settings"
        )


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


def _trained(config: RunConfig, stage: Stage) -> str:
    """The run's model after `stage` of the system that is served."""
    layout, system = RunLayout(config.run_dir), config.serve.system
    instead = "give --model FOLDER" if stage == "classify" else "name a folder in serve.rationale_model"
    hint = f"run the pipeline first (`make demo` for the demo, else python ray_jobs/pipeline.py --config ...), or {instead}"
    if not storage.exists(layout.run_json):
        raise ArtifactError(f"{layout.run_json}: no such file, the run {config.name} has not been made here; {hint}")
    folder = storage.read_json(layout.run_json).get("artifacts", {}).get(f"train/{system}/{stage}")
    if folder is None:
        after = "" if stage == "classify" else " by stage 1"
        raise ArtifactError(f"{layout.run_json}: the run {config.name} has trained no {system} model{after} yet; {hint}")
    # The run's folder may have been moved since it was written: only the fingerprint of the stage is taken from there.
    final = layout.train(system, stage, folder.rstrip("/").rpartition("/")[2]) + "/final"
    if not artifacts.is_complete(final):
        raise ArtifactError(f"{final}: not complete, its training was cut short; {hint}")
    return final
