"""Trainings of a tiny video classifier, and what is done with them inside a worker of `tests.training.workers`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ray_jobs.video_classifiers import predict_share
from rbft import rows
from rbft.baselines.classifier_prediction import predict_videos
from rbft.baselines.classifier_spec import ClassifierSpec
from rbft.baselines.classifier_training import train_classifier
from rbft.config import TrainingConfig, VideoClassifierConfig, VideoConfig
from rbft.data.samples import TrainingItem
from rbft.errors import TrainingError, TrainingStopped
from rbft.records import prediction_schema
from tests.samples import TASK


class MakeSpec:
    """Makes trainings in folders beside one another."""

    def __init__(self, model: Path, folder: Path) -> None:
        self._model, self._folder = model, folder

    def __call__(self, name: str, num_workers: int = 1, **settings: Any) -> ClassifierSpec:
        own: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-3, "global_batch_size": 4, "micro_batch_size": 1, "precision": "fp32"}
        max_bad_fraction = settings.pop("max_bad_fraction", 0.2)
        classifier = VideoClassifierConfig(name="tiny", path=str(self._model), **(own | settings))
        of_run = TrainingConfig(
            num_workers=num_workers,
            micro_batch_size=1,
            num_cpus=1,
            num_gpus=0,
            checkpoint_every_steps=1,
            clip_cache_folder=str(self._folder / "clips"),
        )
        return ClassifierSpec(
            name="tiny",
            folder=str(self._folder / name),
            fingerprint="f",
            classifier=classifier,
            task=TASK,
            video=VideoConfig(),
            training=classifier.training(of_run),
            seed=3,
            max_bad_fraction=max_bad_fraction,
            lineage={"system": "tiny"},
        )


class StopAt:
    """Asks to stop at the end of a step."""

    def __init__(self, num_steps: int) -> None:
        self._num_calls = 2 * (num_steps - 1)  # before the step: two are made at each

    def stop_reason(self) -> str | None:
        self._num_calls -= 1
        return "a test" if self._num_calls < 0 else None

    def notice(self) -> str | None:
        return None


def train_until(spec: ClassifierSpec, items: list[TrainingItem], num_steps: int) -> str:
    """The message it stops with."""
    try:
        train_classifier(spec, items, StopAt(num_steps))
    except TrainingStopped as stopped:
        return str(stopped)
    return "did not stop"


def train_to_error(spec: ClassifierSpec, items: list[TrainingItem]) -> str:
    """The message it fails with."""
    try:
        train_classifier(spec, items)
    except TrainingError as error:
        return f"{error.code}: {error}"
    return "did not fail"


def train_each(all_of_them: list[tuple[ClassifierSpec, list[TrainingItem]]]) -> None:
    for spec, items in all_of_them:
        train_classifier(spec, items)


def train_and_predict(spec: ClassifierSpec, items: list[TrainingItem], folder: str) -> None:
    train_classifier(spec, items)
    predict_videos(spec, [item.example for item in items], folder, rows_per_part=3)


def predict_after_the_first(spec: ClassifierSpec, items: list[TrainingItem], folder: str, stop_file: Path) -> str | None:
    """What each worker says at its end; all but the first begin when the first has ended."""
    ended = stop_file.with_suffix(".ended")
    deadline = time.monotonic() + 120
    while dist.get_rank() > 0 and not ended.exists():
        if time.monotonic() > deadline:
            raise TimeoutError("the first worker has not ended")
        time.sleep(0.02)
    work = (spec, folder, [item.example for item in items])
    said = predict_share({"works": [work], "rows_per_part": 2, "errors_too": True, "stop_file": str(stop_file)})
    if dist.get_rank() == 0:
        assert len(rows.done_ids(folder, prediction_schema())) < len(items)
        ended.touch()
    return None if said is None else str(said)
