"""A run that calibrates: fitted on the validation clips, reported on the test clips, and neither asked about twice."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from miniature.world import sample_world
from miniature.write import write_world
from rbft import rows
from rbft.evaluation.calibration import Calibration, apply_calibration
from rbft.evaluation.predictions import predictions_from_table
from rbft.evaluation.probabilities import evaluate_probabilities
from rbft.records import Prediction, prediction_schema
from tests.integration.conftest import Jobs

pytestmark = pytest.mark.timeout(300)

LABELS = ("normal", "abnormal")
SIZES = {"validation": 32, "test": 24}


def predictions(folder: Path) -> list[Prediction]:
    return predictions_from_table(rows.read_finished(str(folder), "predictions", prediction_schema()), str(folder))


def test_what_was_fitted_on_validation_is_what_the_report_says_of_the_test_clips(jobs: Jobs, tmp_path: Path) -> None:
    manifest = write_world(tmp_path, sample_world(seed=78, sizes=SIZES))
    settings = (f"data.manifest={manifest}", "evaluation.systems=[zero-shot]", "evaluation.calibrate=true")
    printed = jobs.run("pipeline", "calibrated", *settings)
    assert f"scoring {sum(SIZES.values())} clips" in printed
    run = jobs.run_dir("calibrated")
    (fitted_in,), (evaluated_in,) = (
        [path.parent for path in run.glob(f"{use}/zero-shot/*/COMPLETE.json")] for use in ("calibration", "evaluation")
    )
    asked, held_out = predictions(fitted_in), predictions(evaluated_in)
    assert (len(asked), len(held_out)) == (32, 24) and {row.id for row in asked}.isdisjoint(row.id for row in held_out)

    fitted = Calibration.model_validate_json((fitted_in / "calibration.json").read_text())
    assert fitted.num_clips == SIZES["validation"] and fitted.log_loss_after <= fitted.log_loss_before
    report = (run / "report.html").read_text()
    assert f"calibrated: temperature {fitted.temperature:.3f}" in report
    told = json.loads((run / "summary.json").read_text())["systems"]["zero-shot"]
    assert told["ece"] == pytest.approx(evaluate_probabilities(held_out, LABELS).ece), "the summary has the system as it is"

    assert "scoring" not in jobs.run("pipeline", "calibrated", *settings)

    # The same videos as somebody brings them who wants labels and has none.
    output = tmp_path / "labels"
    flags = ["--manifest", str(manifest), "--output", str(output)]
    assert "56 of 56 videos" in jobs.run("classify", "calibrated", *settings, "serve.system=zero-shot", flags=flags)
    with (output / "labels.csv").open() as table:
        labels = {row["id"]: row["label"] for row in csv.DictReader(table)}
    expected = {row.id: row.predicted for row in apply_calibration(held_out, fitted)}
    assert len(labels) == 56 and {id_: labels[id_] for id_ in expected} == expected
