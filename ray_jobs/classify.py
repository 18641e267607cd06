"""Labels for the videos of a manifest, which need none. `python -m ray_jobs.classify --config RUN --manifest FILE --output FOLDER`

What the service would answer (the model of `serve.system`, calibrated if that is), without the service, for as many videos as there are: on
the actors of evaluation, and resumed like it. The folder then has predictions as evaluation writes them, and `labels.csv`.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import asdict

from ray_jobs.evaluate import read_calibrations, require_model
from ray_jobs.generate import report_errors
from ray_jobs.inference import run_inference
from ray_jobs.progress import Progress, say
from ray_jobs.run import Run, command, video_key
from ray_jobs.work import Work
from rbft import artifacts, rows, storage
from rbft.cli import add_run_arguments, read_run, run
from rbft.config import DataConfig, GatesConfig, RunConfig
from rbft.data.manifest import validate_examples
from rbft.data.source import read_examples
from rbft.errors import JobError
from rbft.evaluation.calibration import apply_calibration, read_calibration
from rbft.evaluation.predictions import predictions_from_table
from rbft.lease import Lease
from rbft.records import Example, Prediction, prediction_schema


def classify(config: RunConfig, manifest: str, output: str, *, retry_errors: bool = False) -> list[Prediction]:
    """What the model of `serve.system` says of each video of `manifest`, in its order, as it was scored; written to the folder `output`.

    Raises `JobError` if `output` has the answers to something else, or more than `data.max_bad_fraction` of the videos cannot be used.
    """
    opened = Run(config)
    system = config.serve.system
    model = require_model(opened, system)
    examples = read_examples(DataConfig(manifest=manifest), config.task, config.seed)
    validate_examples(examples, config.task, require_labels=False)
    fingerprint = _fingerprint(config, model.path, examples)
    _claim(output, fingerprint)
    if retry_errors:
        rows.reopen(output, prediction_schema())
    if not artifacts.is_complete(output, fingerprint):
        done = rows.done_ids(output, prediction_schema(), errors_too=not retry_errors)
        pending = [example for example in examples if example.id not in done]
        say(f"classify: {len(pending)} of {len(examples)} videos with {system}")
        work = Work("prediction", output, pending, model, config.task, {"system": system}, GatesConfig())
        run_inference(config, config.evaluation.engine, [work], Progress("classify", "videos", len(pending)))
        lineage = {"system": system, "engine": config.evaluation.engine, "model": model.path, "versions": opened.fact("versions")}
        rows.finish(output, "predictions", prediction_schema(), [example.id for example in examples], fingerprint, lineage)
    predictions = predictions_from_table(rows.read_finished(output, "predictions", prediction_schema()), output)
    storage.write_bytes(f"{output}/labels.csv", _labels(_calibrated(opened, predictions)).encode())
    say(f"classify: {output}/labels.csv")
    report_errors(opened, "classify", [(row.id, row.error_code, row.error_message) for row in predictions])
    return predictions


def _fingerprint(config: RunConfig, model: str, examples: Sequence[Example]) -> str:
    return artifacts.fingerprint(
        {
            "kind": "labels",
            "model": artifacts.model_fingerprint(model),
            "dtype": config.model.dtype,
            "engine": config.evaluation.engine,
            "question": config.task.question,
            "labels": config.task.labels,
            "max_new_tokens": config.evaluation.max_new_tokens,
            "video": asdict(config.video.spec()),
            "videos": [video_key(example) for example in examples],
        }
    )


def _claim(output: str, fingerprint: str) -> None:
    """Note in the folder whose answers it has, so that no others are mixed with them."""
    storage.make_folder(output)
    note = f"{output}/job.json"
    if storage.exists(note) and storage.read_json(note).get("fingerprint") != fingerprint:
        raise JobError(f"{output}: has the answers of another model, question or manifest; give another --output")
    storage.write_json(note, {"fingerprint": fingerprint})


def _calibrated(opened: Run, predictions: list[Prediction]) -> list[Prediction]:
    """As the service calibrates: by the file that `serve.calibration` names, else by what the run fitted."""
    config = opened.config
    if config.serve.calibration is not None:
        return apply_calibration(predictions, read_calibration(config.serve.calibration))
    fitted = read_calibrations(opened).get(config.serve.system)
    return predictions if fitted is None else apply_calibration(predictions, fitted)


def _labels(predictions: Sequence[Prediction]) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("id", "label", "probability", "error"))
    for row in predictions:
        probability = "" if row.predicted is None else f"{row.probabilities[row.predicted]:.6f}"
        writer.writerow((row.id, row.predicted or "", probability, row.error_code or ""))
    return table.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.classify", description=(__doc__ or "").partition("\n")[0])
    add_run_arguments(parser)
    parser.add_argument("--manifest", required=True, metavar="FILE", help="the videos: a manifest.parquet, as `rbft import` makes it")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the answers go, on any filesystem of a run")
    parser.add_argument("--retry-errors", action="store_true", help="ask again about videos that have an error row")
    arguments = parser.parse_args()
    config = read_run(arguments)
    with Lease(config.run_dir, command()):
        classify(config, arguments.manifest, arguments.output.rstrip("/"), retry_errors=arguments.retry_errors)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
