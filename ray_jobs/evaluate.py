"""Predictions and metrics of every system on the held-out videos. `python ray_jobs/evaluate.py --config …`

By label likelihood (primary, defined for every model that we run) and by generated text, strictly read (readings, 12). API models
(`evaluation.api_models`) are asked from this process, video classifiers (`evaluation.video_classifiers`) in Ray Train workers; the others
answer in Ray actors.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any, Literal

import pyarrow as pa

from ray_jobs import api_models, video_classifiers
from ray_jobs.command import main
from ray_jobs.generate import report_errors
from ray_jobs.inference import run_inference
from ray_jobs.progress import Progress, say
from ray_jobs.run import Run, video_key
from ray_jobs.work import EngineName, Work
from rbft import artifacts, rows, storage
from rbft.config import GatesConfig, MaskingConfig, ModelConfig
from rbft.errors import DataError, JobError, ModelRefusedError
from rbft.evaluation.calibration import SPLIT, Calibration, apply_calibration, fit_calibration, read_calibration
from rbft.evaluation.measures import Measures, kept_measures, measure
from rbft.evaluation.predictions import predictions_from_table
from rbft.rationales.table import rationales_from_table
from rbft.records import Example, Prediction, Rationale, prediction_schema, rationale_schema
from rbft.systems import split_masks

Use = Literal["evaluation", "calibration"]
"""What predictions are for: the metrics, on `evaluation.split`, or fitting on the validation split."""


def held_out(run: Run, use: Use = "evaluation") -> list[Example]:
    """The labelled videos of the split that `use` is about; raises `DataError` if there are none."""
    split = run.config.evaluation.split if use == "evaluation" else SPLIT
    examples = [example for example in run.split(split) if example.label is not None]
    if not examples:
        setting = "evaluation.split" if use == "evaluation" else "evaluation.calibrate to false"
        raise DataError(f"no labelled video in split {split!r}; set {setting} or data.fractions")
    return examples


def prediction_work(run: Run, system: str, model: ModelConfig, engine: EngineName, use: Use = "evaluation") -> Work:
    """What `system` has still to predict, and where it goes."""
    folder, pending = _pending(run, system, engine, use)
    mask = split_masks(system)[1]
    return Work("prediction", folder, pending, model, run.config.task, {"system": system}, GatesConfig(), mask=mask)


def finish_predictions(run: Run, system: str, engine: EngineName) -> list[Prediction]:
    """Join the parts of `system`, write its metrics, complete its folder; the predictions in the manifest's order."""
    _finish_rows(run, system, engine, "evaluation")
    predictions = read_predictions(run, system)
    read_measures(run, system, predictions)
    # A refusal is an answer, and a wrong one; what cannot be used is something else.
    outcomes = [(p.id, None if p.error_code == ModelRefusedError.code else p.error_code, p.error_message) for p in predictions]
    report_errors(run, f"evaluate {system}", outcomes)
    return predictions


def read_measures(run: Run, system: str, predictions: Sequence[Prediction], calibration: Calibration | None = None) -> Measures:
    """The metrics of `system`, whose `predictions` are all there, as they are or after `calibration`; kept beside them."""
    folder, labels, seed = str(run.artifact(f"evaluation/{system}")), run.config.task.labels, run.config.seed
    inputs = {"predictions": artifacts.read_marker(folder)["parts"], "labels": labels, "seed": seed}
    if calibration is None:
        return kept_measures(f"{folder}/metrics.json", inputs, lambda: measure(predictions, labels, seed))
    inputs |= {"calibration": calibration.model_dump(mode="json")}
    after = apply_calibration(predictions, calibration)
    return kept_measures(f"{folder}/calibrated.json", inputs, lambda: measure(after, labels, seed))


def finish_calibration(run: Run, system: str, engine: EngineName) -> Calibration:
    """Join the validation predictions of `system`, fit its calibration, and write it beside them."""
    folder = _finish_rows(run, system, engine, "calibration")
    fitted = fit_calibration(read_predictions(run, system, "calibration"), run.examples, run.config.task.labels)
    storage.write_json(f"{folder}/calibration.json", fitted.model_dump(mode="json"))
    return fitted


def read_calibrations(run: Run) -> dict[str, Calibration]:
    """System -> its calibration; empty where `evaluation.calibrate` is off."""
    systems = run.config.evaluation.systems if run.config.evaluation.calibrate else ()
    folders = {system: str(run.artifact(f"calibration/{system}")) for system in systems}
    return {system: read_calibration(f"{folder}/calibration.json") for system, folder in folders.items()}


def _finish_rows(run: Run, system: str, engine: EngineName, use: Use) -> str:
    """The folder, complete."""
    fingerprint = _fingerprint(run, system, engine, use)
    folder = _folder(run, system, fingerprint, use)
    if not artifacts.is_complete(folder, fingerprint):
        ids = [example.id for example in held_out(run, use)]
        lineage = {"system": system, "engine": engine, "model": _model(run, system), "versions": run.fact("versions")}
        rows.finish(folder, "predictions", _schema(system), ids, fingerprint, lineage)
    return folder


def read_predictions(run: Run, system: str, use: Use = "evaluation") -> list[Prediction]:
    """The predictions of `system`; raises `ArtifactError` if it has not been evaluated to the end."""
    folder = str(run.artifact(f"{use}/{system}"))
    return predictions_from_table(rows.read_finished(folder, "predictions", _schema(system)), folder)


def evaluate(runs: Sequence[Run], *, without: Collection[str] = ()) -> None:
    """Predictions and metrics of each run's systems, apart from those in `without`, by one engine pool, and of its API models
    and video classifiers.

    Raises `JobError` for a system whose model has not been trained.
    """
    for run in runs:
        for model in run.config.evaluation.api_models:
            folder, pending = _pending(run, model.name, "openai")
            api_models.ask(run, model, folder, pending)
            finish_predictions(run, model.name, "openai")
    _evaluate_classifiers(runs)
    asked = [(run, system) for run in runs for system in run.config.evaluation.systems]
    evaluate_systems(
        [(run, system) for run, system in asked if system not in without],
        [(run, system) for run, system in asked if run.config.evaluation.calibrate],
    )


def evaluate_systems(wanted: Sequence[tuple[Run, str]], to_calibrate: Sequence[tuple[Run, str]] = ()) -> None:
    """Predictions and metrics of systems that we run, also of such behind masks (`rbft.systems.behind_masks`), and the calibrations of
    others."""
    runs = [run for run, _ in (*wanted, *to_calibrate)]
    if not runs:
        return
    engine = runs[0].config.evaluation.engine
    work = [prediction_work(run, system, require_model(run, system), engine) for run, system in wanted]
    work += [prediction_work(run, system, require_model(run, system), engine, "calibration") for run, system in to_calibrate]
    total = sum(len(item.examples) for item in work)
    if total:
        say(f"evaluate: scoring {total} clips with {engine}")
        progress = Progress("evaluate", "clips", total)
        # A vLLM engine is started for each model anyway; plain models take turns in the same processes.
        groups = [[item] for item in work] if engine == "vllm" else [work]
        runs[0].note_start("evaluate", sum(run_inference(runs[0].config, engine, group, progress) for group in groups))
    for run, system in wanted:
        finish_predictions(run, system, engine)
    for run, system in to_calibrate:
        finish_calibration(run, system, engine)


def _evaluate_classifiers(runs: Sequence[Run]) -> None:
    planned = [each for run in runs for each in video_classifiers.plan_classifiers(run)]
    works = [video_classifiers.ClassifierWork(each, *_pending(each.run, each.spec.name, "hf")) for each in planned]
    video_classifiers.predict(works)
    for each in planned:
        finish_predictions(each.run, each.spec.name, "hf")


def require_model(run: Run, system: str) -> ModelConfig:
    """What `system` answers with; raises `JobError` if it has not been trained."""
    system, _ = split_masks(system)
    model = run.config.model if system == "zero-shot" else run.trained_model(system, "classify")
    if model is None:
        raise JobError(f"evaluate {system}: its model has not been trained; run `rbft train` or the pipeline with the same --config")
    return model


def explain(run: Run, system: str, examples: Sequence[Example]) -> dict[str, Rationale]:
    """Id -> what the model of `system` writes about each of `examples` when asked for a rationale; kept beside its predictions."""
    engine = run.config.evaluation.engine
    folder = f"{run.artifact(f'evaluation/{system}')}/samples"
    done = rows.done_ids(folder, rationale_schema())
    pending = [example for example in examples if example.id not in done]
    if pending:
        say(f"report: asking {system} for {len(pending)} rationales")
        work = Work("rationale", folder, pending, require_model(run, system), run.config.task, {"system": system}, GatesConfig())
        run_inference(run.config, engine, [work])
    wanted = {example.id for example in examples}
    return {row.id: row for row in rationales_from_table(rows.read_parts(folder, rationale_schema())) if row.id in wanted}


def _pending(run: Run, system: str, engine: EngineName, use: Use = "evaluation") -> tuple[str, list[Example]]:
    """The folder of `system`'s predictions, and the videos that have none yet."""
    examples = held_out(run, use)
    fingerprint = _fingerprint(run, system, engine, use)
    folder = _folder(run, system, fingerprint, use)
    run.record_artifact(f"{use}/{system}", folder)
    if run.retry_errors:
        rows.reopen(folder, _schema(system))
    if artifacts.is_complete(folder, fingerprint):
        return folder, []
    done = rows.done_ids(folder, _schema(system), errors_too=not run.retry_errors)
    return folder, [example for example in examples if example.id not in done]


def _schema(system: str) -> pa.Schema:
    return prediction_schema(masked=split_masks(system)[1] is not None)


def _folder(run: Run, system: str, fingerprint: str, use: Use) -> str:
    return run.layout.evaluation(system, fingerprint) if use == "evaluation" else run.layout.calibration(system, fingerprint)


def _fingerprint(run: Run, system: str, engine: EngineName, use: Use) -> str:
    for model in run.config.evaluation.api_models:
        if model.name == system:
            return api_models.fingerprint(run, model, held_out(run, use))
    for classifier in run.config.evaluation.video_classifiers:
        if classifier.name == system:
            return video_classifiers.prediction_fingerprint(run, classifier, held_out(run, use))
    system, masks = split_masks(system)
    return artifacts.fingerprint(
        {
            "kind": "predictions",
            # 2: with `masked_share`.
            **({} if masks is None else {"masks": [masks, 2, _masking(run.config.evaluation.masking)]}),
            "model": _model(run, system),
            "dtype": run.config.model.dtype,
            "engine": engine,
            "question": run.config.task.question,
            "labels": run.config.task.labels,
            "max_new_tokens": run.config.evaluation.max_new_tokens,
            "video": asdict(run.config.video.spec()),
            "videos": [[video_key(example), example.label] for example in held_out(run, use)],
        }
    )


def _model(run: Run, system: str) -> str:
    """The fingerprint of what `system` answers with."""
    system, _ = split_masks(system)
    return run.model_fingerprint if system == "zero-shot" else str(run.artifact(f"train/{system}/classify")).rpartition("/")[2]


def _masking(masking: MaskingConfig) -> dict[str, Any]:
    """What determines masks: of a file of boxes its content, wherever it lies."""
    content = {} if masking.boxes is None else {"boxes": artifacts.file_sha256(storage.local_path(masking.boxes))}
    return masking.model_dump(mode="json") | content


def job(run: Run) -> None:
    with run.timed("evaluate"):
        evaluate(run.all_seeds())


if __name__ == "__main__":
    main(job, __doc__)
