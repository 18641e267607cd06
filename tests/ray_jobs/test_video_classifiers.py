"""Video classifiers as systems of a run, as far as no Ray is needed: what determines their artifacts, and what is done without workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from miniature.world import sample_world
from miniature.write import write_world
from ray_jobs.evaluate import evaluate
from ray_jobs.run import Run
from ray_jobs.video_classifiers import plan_classifiers
from rbft.config import load_config
from rbft.errors import JobError, ModelError
from rbft.plan import build_plan, format_plan
from tests.baselines.classifiers import make_tiny_classifier
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    world = write_world(tmp_path_factory.mktemp("world"), sample_world(seed=5, sizes={"train": 6, "test": 4}))
    model = make_tiny_model(tmp_path_factory.mktemp("model"))
    classifier = make_tiny_classifier(tmp_path_factory.mktemp("classifier"), "videomae")
    return [f"data.manifest={world}", f"model.path={model}", "evaluation.systems=[]"], classifier


class OpenRun:
    """Opens a run with one video classifier."""

    def __init__(self, repository: Path, folder: Path, inputs: tuple[list[str], Path]) -> None:
        self._file, self._folder = repository / "configs/miniature.yaml", folder
        self._inputs, self._classifier = inputs

    def __call__(self, *overrides: str, **settings: Any) -> Run:
        classifier = {"name": "tiny", "path": str(self._classifier), "epochs": 1, "micro_batch_size": 1, "precision": "fp32", **settings}
        classifiers = f"evaluation.video_classifiers={json.dumps([classifier])}"
        return Run(load_config(self._file, [f"output_dir={self._folder}", *self._inputs, classifiers, *overrides]))


@pytest.fixture
def open_run(repository: Path, tmp_path: Path, inputs: tuple[list[str], Path]) -> OpenRun:
    return OpenRun(repository, tmp_path, inputs)


def fingerprint(run: Run) -> str:
    (planned,) = plan_classifiers(run)
    return planned.spec.fingerprint


@pytest.mark.parametrize(
    "setting", [{"epochs": 2}, {"fit": "stretch"}, {"num_frames": 8}, {"class_balance": "loss"}, {"learning_rate": 1e-4}]
)
def test_what_determines_the_model_gives_it_another_place(open_run: OpenRun, setting: dict[str, Any]) -> None:
    assert fingerprint(open_run(**setting)) != fingerprint(open_run())
    assert fingerprint(open_run("seed=1")) != fingerprint(open_run())


def test_what_changes_rounding_or_a_name_only_does_not(open_run: OpenRun) -> None:
    expected = fingerprint(open_run())
    assert fingerprint(open_run(name="other", micro_batch_size=2)) == expected
    assert fingerprint(open_run("training.num_workers=1", "training.checkpoint_every_steps=3", "task.persona=a plumber")) == expected


def test_it_learns_from_the_labelled_training_videos(open_run: OpenRun) -> None:
    run = open_run(class_balance="sampling")
    (planned,) = plan_classifiers(run)
    assert [item.example for item in planned.items] == run.split("train")
    assert planned.spec.classes == tuple(example.label for example in run.split("train"))
    assert run.stage_folders() == {("tiny", "classify"): planned.spec.folder}


def test_evaluating_one_that_was_not_trained_says_what_to_run(open_run: OpenRun) -> None:
    with pytest.raises(JobError, match="evaluate tiny: it has not been trained; run `rbft train`"):
        evaluate([open_run()])


def test_every_seed_trains_it_again(open_run: OpenRun) -> None:
    runs = open_run("training.seeds=[1,2]").all_seeds()
    assert len({fingerprint(run) for run in runs}) == len(runs) == 3


def test_a_folder_that_is_no_model_is_named_before_anything_starts(open_run: OpenRun, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        open_run(path=str(tmp_path / "nothing"))


def test_the_plan_tells_of_it(open_run: OpenRun) -> None:
    text = format_plan(build_plan(open_run("evaluation.systems=[zero-shot]").config))
    assert "train tiny: 6 videos x 1 epoch in batches of 16 = 1 optimiser steps, then 4 videos to predict" in text
