"""Predictions made elsewhere as part of a run: kept beside those of its own systems, under a name of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rbft import artifacts, rows, storage
from rbft.errors import ArtifactError, DataError
from rbft.evaluation.predictions import predictions_from_table, predictions_table
from rbft.layout import RunLayout
from rbft.lease import Lease
from rbft.records import Example, Prediction, prediction_schema
from rbft.systems import parse_system

_KEY = "imported"
"""In run.json: name -> folder."""


def add_to_run(run_dir: str, name: str, predictions: list[Prediction], source: Path) -> str:
    """Keep `predictions`, read from `source`, as the system `name` of the run in `run_dir`; the folder they are in.

    The same predictions again are found there; others under the same name take their place.

    Raises:
        DataError: `name` is that of a system which a run makes itself, or no plain word.
        ArtifactError: there is no such run.
        JobError: a job works there.
    """
    _check_name(name)
    layout = RunLayout(run_dir)
    if not storage.exists(layout.run_json):
        raise ArtifactError(f"{run_dir}: no run there yet; evaluate it first with the same --config")
    fingerprint = artifacts.fingerprint({"kind": "imported", "predictions": [asdict(row) for row in predictions]})
    folder = layout.evaluation(name, fingerprint)
    with Lease(run_dir, f"rbft predictions import --name {name}"):
        if not artifacts.is_complete(folder, fingerprint):
            rows.write_part(folder, predictions_table(predictions))
            lineage = {"system": name, "imported_from": source.name, "sha256": artifacts.file_sha256(source)}
            rows.finish(folder, "predictions", prediction_schema(), [row.id for row in predictions], fingerprint, lineage)
        facts = storage.read_json(layout.run_json)
        facts.setdefault("artifacts", {})[f"evaluation/{name}"] = folder
        facts.setdefault(_KEY, {})[name] = folder
        storage.write_json(layout.run_json, facts)
    return folder


def read_imported(folders: Mapping[str, str], examples: Sequence[Example]) -> dict[str, list[Prediction]]:
    """Name -> predictions, of what run.json has under "imported", for the labelled videos `examples` that the run tests on now.

    Raises:
        DataError: some are for other videos, or for these when they had other labels.
    """
    labels = {example.id: example.label for example in examples}
    found = {}
    for name, folder in folders.items():
        predictions = predictions_from_table(rows.read_finished(folder, "predictions", prediction_schema()), folder)
        if labels.keys() != {row.id for row in predictions}:
            raise DataError(f"the predictions of {name} were imported for other test videos; import them again for those of the manifest")
        changed = [row.id for row in predictions if row.label != labels[row.id]]
        if changed:
            raise DataError(
                f"the predictions of {name} were imported when {len(changed)} videos had other labels, e.g. {changed[0]}; import them again"
            )
        found[name] = predictions
    return found


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]*", name):
        raise DataError(f"--name {name!r}: is a folder's name; take letters, digits and . _ @ -")
    try:
        parse_system(name)
    except ValueError:
        return
    raise DataError(f"--name {name!r}: is a system that runs make themselves; call the imported one otherwise")
