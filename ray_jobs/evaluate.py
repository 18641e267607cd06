"""Predictions and metrics of every system on the held-out videos. `python ray_jobs/evaluate.py --config …`

By label likelihood (primary, defined for every model that we run) and by generated text, strictly read (readings, 12). API models
(`evaluation.api_models`) are asked from this process, video classifiers (`evaluation.video_classifiers`) in Ray Train workers; the others
answer in Ray actors.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict

from ray_jobs import api_models, video_classifiers
from ray_jobs.command import main
from ray_jobs.generate import report_errors
from ray_jobs.inference import run_inference
from ray_jobs.progress import Progress, say
from ray_jobs.run import Run, video_key
from ray_jobs.work import EngineName, Work
from rbft import artifacts, rows, storage
from rbft.config import GatesConfig, ModelConfig
from rbft.errors import DataError, JobError, ModelRefusedError
from rbft.evaluation.metrics import answered_modes, evaluate_predictions
from rbft.evaluation.predictions import predictions_from_table
from rbft.rationales.table import rationales_from_table
from rbft.records import Example, Prediction, Rationale, prediction_schema, rationale_schema


def held_out(run: Run) -> list[Example]:
    """The labelled videos of `evaluation.split`; raises `DataError` if there are none."""
    examples = [example for example in run.split(run.config.evaluation.split) if example.label is not None]
    if not examples:
        raise DataError(f"no labelled video in split {run.config.evaluation.split!r}; set evaluation.split or data.fractions")
    return examples


def prediction_work(run: Run, system: str, model: ModelConfig, engine: EngineName) -> Work:
    """What `system` has still to predict, and where it goes."""
    folder, pending = _pending(run, system, engine)
    return Work("prediction", folder, pending, model, run.config.task, {"system": system}, GatesConfig())


def finish_predictions(run: Run, system: str, engine: EngineName) -> list[Prediction]:
    """Join the parts of `system`, write its metrics, complete its folder; the predictions in the manifest's order."""
    fingerprint = _fingerprint(run, system, engine)
    folder = run.layout.evaluation(system, fingerprint)
    if not artifacts.is_complete(folder, fingerprint):
        ids = [example.id for example in held_out(run)]
        lineage = {"system": system, "engine": engine, "versions": run.fact("versions")}
        rows.finish(folder, "predictions", prediction_schema(), ids, fingerprint, lineage)
    predictions = read_predictions(run, system)
    labels, seed = run.config.task.labels, run.config.seed
    modes = {mode: evaluate_predictions(predictions, labels, mode, seed=seed) for mode in answered_modes(predictions)}
    storage.write_json(f"{folder}/metrics.json", {mode: metrics.model_dump(mode="json") for mode, metrics in modes.items()})
    # A refusal is an answer, and a wrong one; what cannot be used is something else.
    outcomes = [(p.id, None if p.error_code == ModelRefusedError.code else p.error_code, p.error_message) for p in predictions]
    report_errors(run, f"evaluate {system}", outcomes)
    return predictions


def read_predictions(run: Run, system: str) -> list[Prediction]:
    """The predictions of `system`; raises `ArtifactError` if it has not been evaluated to the end."""
    folder = str(run.artifact(f"evaluation/{system}"))
    return predictions_from_table(rows.read_finished(folder, "predictions", prediction_schema()), folder)


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
    engine = runs[0].config.evaluation.engine
    wanted = [(run, system) for run in runs for system in run.config.evaluation.systems if system not in without]
    work = [prediction_work(run, system, _model(run, system), engine) for run, system in wanted]
    total = sum(len(item.examples) for item in work)
    if total:
        say(f"evaluate: scoring {total} clips with {engine}")
        progress = Progress("evaluate", "clips", total)
        # A vLLM engine is started for each model anyway; plain models take turns in the same processes.
        groups = [[item] for item in work] if engine == "vllm" else [work]
        runs[0].note_start("evaluate", sum(run_inference(runs[0].config, engine, group, progress) for group in groups))
    for run, system in wanted:
        finish_predictions(run, system, engine)


def _evaluate_classifiers(runs: Sequence[Run]) -> None:
    planned = [each for run in runs for each in video_classifiers.plan_classifiers(run)]
    works = [video_classifiers.ClassifierWork(each, *_pending(each.run, each.spec.name, "hf")) for each in planned]
    video_classifiers.predict(works)
    for each in planned:
        finish_predictions(each.run, each.spec.name, "hf")


def _model(run: Run, system: str) -> ModelConfig:
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
        work = Work("rationale", folder, pending, _model(run, system), run.config.task, {"system": system}, GatesConfig())
        run_inference(run.config, engine, [work])
    wanted = {example.id for example in examples}
    return {row.id: row for row in rationales_from_table(rows.read_parts(folder, rationale_schema())) if row.id in wanted}


def _pending(run: Run, system: str, engine: EngineName) -> tuple[str, list[Example]]:
    """The folder of `system`'s predictions, and the videos that have none yet."""
    examples = held_out(run)
    fingerprint = _fingerprint(run, system, engine)
    folder = run.layout.evaluation(system, fingerprint)
    run.record_artifact(f"evaluation/{system}", folder)
    if run.retry_errors:
        rows.reopen(folder, prediction_schema())
    if artifacts.is_complete(folder, fingerprint):
        return folder, []
    done = rows.done_ids(folder, prediction_schema(), errors_too=not run.retry_errors)
    return folder, [example for example in examples if example.id not in done]


def _fingerprint(run: Run, system: str, engine: EngineName) -> str:
    for model in run.config.evaluation.api_models:
        if model.name == system:
            return api_models.fingerprint(run, model, held_out(run))
    for classifier in run.config.evaluation.video_classifiers:
        if classifier.name == system:
            return video_classifiers.prediction_fingerprint(run, classifier, held_out(run))
    trained = run.artifact(f"train/{system}/classify")
    return artifacts.fingerprint(
        {
            "kind": "predictions",
            "model": run.model_fingerprint if system == "zero-shot" else str(trained).rpartition("/")[2],
            "dtype": run.config.model.dtype,
            "engine": engine,
            "question": run.config.task.question,
            "labels": run.config.task.labels,
            "max_new_tokens": run.config.evaluation.max_new_tokens,
            "video": asdict(run.config.video.spec()),
            "videos": [[video_key(example), example.label] for example in held_out(run)],
        }
    )


def job(run: Run) -> None:
    with run.timed("evaluate"):
        evaluate(run.all_seeds())


if __name__ == "__main__":
    main(job, __doc__)
