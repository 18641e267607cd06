"""Specialised video models as systems of a run: fine-tuned on its labelled training videos, then asked about the held-out ones.

Both in Ray Train workers, as many as `training` says. A model that is trained already, by its fingerprint, is not trained again, and of
predictions only those are made that are not there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.progress import say
from ray_jobs.run import Run, video_key
from ray_jobs.training_workers import following, places, run_workers
from rbft import artifacts, rows
from rbft.baselines.classifier_spec import ClassifierSpec
from rbft.config import VideoClassifierConfig
from rbft.data.samples import TrainingItem, class_weights, classify_items
from rbft.errors import ConfigError, JobError, ModelError, TrainingError, TrainingStopped
from rbft.records import Example, prediction_schema


@dataclass(frozen=True)
class PlannedClassifier:
    """One model of one run, with what it learns from."""

    run: Run
    spec: ClassifierSpec
    items: list[TrainingItem]


def plan_classifiers(run: Run) -> list[PlannedClassifier]:
    """The run's video classifiers, in the order of its configuration."""
    return [_plan(run, classifier) for classifier in run.config.evaluation.video_classifiers]


def train_classifiers(runs: Sequence[Run]) -> None:
    """Every video classifier of the runs fine-tuned, each with its `final` model folder. Raises `JobError` if workers fail for good."""
    for planned in (planned for run in runs for planned in plan_classifiers(run)):
        run, spec = planned.run, planned.spec
        if artifacts.is_complete(f"{spec.home}/final", spec.fingerprint):
            say(f"train {spec.name}: is there already ({spec.home}/final)")
            continue
        say(f"train: starting {spec.training.num_workers} workers for {spec.name} ({len(planned.items)} videos)")
        with following([planned]):
            run_workers(run, spec.training, _train, {"spec": spec, "items": planned.items}, [spec.fingerprint])


def _train(config: dict[str, Any]) -> TrainingError | None:
    from ray_jobs.stopping import WorkerControls
    from rbft.baselines.classifier_training import train_classifier

    try:
        train_classifier(config["spec"], config["items"], WorkerControls(config["stop_file"]))
    except TrainingError as ended:
        return ended
    except (ConfigError, ModelError) as error:  # on all workers alike
        return TrainingError(f"{config['spec'].name}: {error}")
    return None


@dataclass(frozen=True)
class ClassifierWork:
    """Videos that a trained model has still to be asked about, and where the rows go."""

    planned: PlannedClassifier
    folder: str
    examples: list[Example]


def predict(works: Sequence[ClassifierWork]) -> None:
    """Predictions of all `works` as parts of their folders. Raises `JobError` if a model has not been trained, or workers fail for good."""
    works = [work for work in works if work.examples]
    for spec in (work.planned.spec for work in works):
        if not artifacts.is_complete(f"{spec.home}/final", spec.fingerprint):
            raise JobError(f"evaluate {spec.name}: it has not been trained; run `rbft train` or the pipeline with the same --config")
    if not works:
        return
    run, spec = works[0].planned.run, works[0].planned.spec
    for work in works:
        say(f"evaluate {work.planned.spec.name}: {len(work.examples)} clips in {spec.training.num_workers} workers")
    settings = {
        "works": [(work.planned.spec, work.folder, work.examples) for work in works],
        "rows_per_part": run.config.engine.rows_per_block,
        "errors_too": not run.retry_errors,
    }
    run_workers(run, spec.training, predict_share, settings, ["predictions", *(work.planned.spec.fingerprint for work in works)])


def predict_share(config: dict[str, Any]) -> TrainingError | None:
    """A worker's part of what `predict` asks for; why it ended before it was finished."""
    import torch.distributed as dist

    from ray_jobs.stopping import read_stop_file
    from rbft.baselines.classifier_prediction import predict_videos

    rank, num_workers = dist.get_rank(), dist.get_world_size()
    for spec, folder, examples in config["works"]:
        done = rows.done_ids(folder, prediction_schema(), errors_too=config["errors_too"])  # of workers that died
        share = [example for example in examples[rank::num_workers] if example.id not in done]
        predict_videos(spec, share, folder, config["rows_per_part"], lambda: read_stop_file(config["stop_file"]) is not None)
    # Nobody waits for the others, whose videos may take hours more: a process group gives up after half of one.
    if (why := read_stop_file(config["stop_file"])) is None:
        return None
    return TrainingStopped(f"predictions: stopped ({why}); what is done is kept, the same command goes on there")


def prediction_fingerprint(run: Run, classifier: VideoClassifierConfig, examples: Sequence[Example]) -> str:
    """Of the predictions of `classifier` about `examples`."""
    return artifacts.fingerprint(
        {
            "kind": "predictions",
            "model": str(run.artifact(f"train/{classifier.name}/classify")).rpartition("/")[2],
            "precision": classifier.precision,
            "num_crops": classifier.num_crops,
            "videos": [[video_key(example), example.label] for example in examples],
        }
    )


def _plan(run: Run, classifier: VideoClassifierConfig) -> PlannedClassifier:
    config = run.config
    items = classify_items(config.task, run.split("train"))
    classes = tuple(item.answer for item in items) if classifier.class_balance == "sampling" else ()
    if classifier.class_balance == "loss" and items:
        items = class_weights(items)
    base = artifacts.model_fingerprint(classifier.path)
    settings = classifier.model_dump(mode="json", exclude={"name", "path", "micro_batch_size", "recipe", "num_crops"})
    fingerprint = artifacts.fingerprint(
        {
            "kind": "video-classifier",
            "start": base,
            "settings": settings,
            "labels": config.task.labels,
            "backend": config.video.backend,
            "seed": config.seed,
            "items": [
                [item.example.id, item.example.sha256, item.example.start_s, item.example.end_s, item.answer, item.weight] for item in items
            ],
        }
    )
    folder = run.layout.train(classifier.name, "classify", fingerprint)
    run.record_artifact(f"train/{classifier.name}/classify", folder)
    spec = ClassifierSpec(
        name=classifier.name,
        **places(run, folder),
        fingerprint=fingerprint,
        classifier=classifier.model_copy(update={"path": str(Path(classifier.path).absolute())}),
        task=config.task,
        video=config.video,
        training=classifier.training(config.training),
        seed=config.seed,
        max_bad_fraction=config.data.max_bad_fraction,
        classes=classes,
        lineage={
            **{"run": config.name, "system": classifier.name, "stage": "classify", "base": base, "base_model": Path(classifier.path).name},
            **{"seed": config.seed, "settings": settings, "num_items": len(items)},
            "classes": dict(sorted(Counter(item.answer for item in items).items())),
            "videos": artifacts.fingerprint([item.example.id for item in items]),
            "split": artifacts.fingerprint([[example.id, example.sha256, example.split] for example in run.examples]),
            "versions": run.fact("versions"),
        },
    )
    return PlannedClassifier(run, spec, items)
