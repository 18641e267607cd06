"""Where predictions are, as a person says it: "runs/smarthome/rb-ft" (a run and a system of it), a folder, or a Parquet file.

A run is read by its files alone (`rbft.layout`): run.json says which predictions of a system are the current ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from rbft import artifacts, rows, storage
from rbft.errors import ArtifactError, DataError
from rbft.evaluation.predictions import predictions_from_table, read_predictions
from rbft.evaluation.provenance import Source, read_source
from rbft.layout import RunLayout
from rbft.records import Prediction, prediction_schema


@dataclass(frozen=True)
class FoundPredictions:
    """Predictions and what is known of where they were found."""

    name: str
    """Of the system, or of the file."""
    predictions: list[Prediction]
    labels: tuple[str, ...]
    """Of the run's task, in its order; of a lone file those of its probabilities, or those that occur in it, by name."""
    run: str | None
    """The run's folder; None for a lone file or folder."""
    source: Source


def find_predictions(where: str) -> FoundPredictions:
    """The predictions that `where` means.

    Raises:
        ArtifactError: there are none, or none that are complete.
        DataError: no prediction names a label.
    """
    where = where.rstrip("/")
    if where.endswith(".parquet"):
        predictions = read_predictions(where)
        name = where.rpartition("/")[2].removesuffix(".parquet")
        file = (where, artifacts.bytes_sha256(storage.read_bytes(where)))
        return FoundPredictions(name, predictions, _labels(predictions, where), None, Source(name, (file,), None, None, len(predictions)))
    if artifacts.is_complete(where):
        return _in_folder(where, where.rpartition("/")[2], None)
    run, _, system = where.rpartition("/")
    if run and storage.exists(RunLayout(run).run_json):
        known = storage.read_json(RunLayout(run).run_json).get("artifacts", {})
        systems = {name.removeprefix("evaluation/"): folder for name, folder in known.items() if name.startswith("evaluation/")}
        if system not in systems:
            raise ArtifactError(f"{run}: has no predictions of {system!r}; it has those of {', '.join(sorted(systems)) or 'no system'}")
        return _in_folder(_folder(run, system, str(systems[system])), system, run)
    raise ArtifactError(f"{where}: no predictions there; give RUN_FOLDER/SYSTEM, a folder with {artifacts.MARKER}, or a Parquet file")


def _folder(run: str, system: str, recorded: str) -> str:
    """The folder that run.json names: it may be relative to where the job was started, or the run may have been moved since."""
    moved = RunLayout(run).evaluation(system, recorded.rstrip("/").rpartition("/")[2])
    return moved if storage.exists(moved) else recorded


def _in_folder(folder: str, name: str, run: str | None) -> FoundPredictions:
    predictions = predictions_from_table(rows.read_finished(folder, "predictions", prediction_schema()), folder)
    labels = _labels(predictions, folder) if run is None else _task_labels(run)
    return FoundPredictions(name, predictions, labels, run, read_source(folder, name, num_videos=len(predictions)))


def _task_labels(run: str) -> tuple[str, ...]:
    config = yaml.safe_load(storage.read_bytes(RunLayout(run).config))
    return tuple(config["task"]["labels"])


def _labels(predictions: list[Prediction], where: str) -> tuple[str, ...]:
    in_order = next((tuple(row.probabilities) for row in predictions if row.probabilities), ())
    occurring = {label for row in predictions for label in (row.label, row.predicted, row.generated_label) if label is not None}
    if not occurring | set(in_order):
        raise DataError(f"{where}: no prediction names a label; there is nothing to compare")
    return in_order if occurring <= set(in_order) else tuple(sorted(occurring | set(in_order)))
