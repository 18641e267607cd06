"""`evaluation.video_classifiers` in a run file: paths, names, batches, and what is said about mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rbft.config import RunConfig, load_config
from rbft.config.classifier_recipes import RECIPES
from rbft.errors import ConfigError


def load(repository: Path, *classifiers: Any, overrides: tuple[str, ...] = ()) -> RunConfig:
    given = f"evaluation.video_classifiers={json.dumps(classifiers)}"
    return load_config(repository / "configs/miniature.yaml", [given, *overrides])


def mistake(repository: Path, *classifiers: Any, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load(repository, *classifiers, overrides=overrides)
    return str(caught.value)


def test_a_classifier_has_the_runs_workers_and_its_own_batches(repository: Path) -> None:
    config = load(repository, {"name": "videomae", "path": "/models/videomae", "global_batch_size": 8, "micro_batch_size": 4})
    (classifier,) = config.evaluation.video_classifiers
    training = classifier.training(config.training)
    assert (training.num_workers, training.global_batch_size, training.micro_batch_size) == (2, 8, 4)
    assert training.checkpoint_every_steps == config.training.checkpoint_every_steps
    assert config.evaluation.all_systems == ("videomae", *config.evaluation.systems)


def test_its_folder_is_relative_to_the_file(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "models" / "videomae").mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    text = (repository / "configs/miniature.yaml").read_text().replace("tasks/", f"{repository}/configs/tasks/")
    path = tmp_path / "configs" / "run.yaml"
    path.write_text(text.replace("evaluation:\n", "evaluation:\n  video_classifiers: [{name: videomae, path: ../models/videomae}]\n"))
    assert load_config(path, []).evaluation.video_classifiers[0].path == str(tmp_path / "models" / "videomae")


def test_video_classifiers_alone_are_a_run(repository: Path) -> None:
    config = load(repository, {"name": "vivit", "path": "/m"}, overrides=("evaluation.systems=[]",))
    assert config.evaluation.all_systems == ("vivit",)


@pytest.mark.parametrize(
    ("classifier", "said"),
    [
        ({"name": "rb-ft"}, "name 'rb-ft' is that of a system which is trained here"),
        ({"name": "rb-ft-mix-50"}, "is that of a system which is trained here"),
        ({"name": "a/b"}, "video_classifiers.0.name"),
        ({"num_frames": 7}, "video_classifiers.0.num_frames: Input should be a multiple of 2"),
        (
            {"global_batch_size": 6, "micro_batch_size": 2},
            "its global_batch_size 6 does not divide by training.num_workers 2 x its micro_batch",
        ),
        ({"learning_rat": 1}, "did you mean evaluation.video_classifiers.0.learning_rate?"),
        ({"fit": "squash"}, "video_classifiers.0.fit"),
        ({"class_balance": "both"}, "video_classifiers.0.class_balance"),
    ],
)
def test_mistakes_are_named(repository: Path, classifier: dict[str, Any], said: str) -> None:
    assert said in mistake(repository, {"name": "a", "path": "/m"} | classifier)


def test_two_systems_cannot_have_one_name(repository: Path) -> None:
    assert "'a' stands twice" in mistake(repository, {"name": "a", "path": "/m"}, {"name": "a", "path": "/n"})
    asked = ('evaluation.api_models=["gpt-4o"]',)
    assert "'gpt-4o' stands twice" in mistake(repository, {"name": "gpt-4o", "path": "/m"}, overrides=asked)


def test_a_recipe_fills_in_what_is_not_given(repository: Path) -> None:
    """The published values: B/16 at 2e-6 for 5 epochs, one of them warm-up; 4 clips x 3 crops. InternVideo2-L: layer decay, drop path."""
    given = {"name": "UniFormerV2", "path": "/m", "recipe": "uniformerv2-b16", "epochs": 7}
    other = {"name": "InternVideo2", "path": "/m", "recipe": "internvideo2-l14"}
    uniformer, intern = load(repository, given, other).evaluation.video_classifiers
    assert (uniformer.learning_rate, uniformer.epochs, uniformer.warmup_ratio, uniformer.global_batch_size) == (2e-6, 7, 0.2, 256)
    assert (uniformer.num_clips, uniformer.num_crops, uniformer.layer_decay, uniformer.max_grad_norm) == (4, 3, 1.0, 20.0)
    assert (intern.learning_rate, intern.learning_rate_batch, intern.layer_decay, intern.drop_path_rate) == (2e-5, 256, 0.75, 0.1)
    assert (intern.mixup, intern.cutmix, intern.label_smoothing, intern.max_grad_norm) == (0.8, 1.0, 0.1, None)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_whole_and_fits_eight_gpus(name: str, repository: Path) -> None:
    config = load(
        repository, {"name": "a", "path": "/m", "recipe": name}, overrides=("training.num_workers=8", "training.global_batch_size=64")
    )
    (classifier,) = config.evaluation.video_classifiers
    assert {key: getattr(classifier, key) for key in RECIPES[name]} == RECIPES[name]


@pytest.mark.parametrize(
    ("classifier", "said"),
    [
        ({"recipe": "uniformer"}, "recipe 'uniformer' is none of uniformerv2-b16"),
        ({"num_crops": 3, "fit": "stretch"}, "set fit to crop, or num_crops to 1"),
        ({"mixup": 0.8, "micro_batch_size": 1, "global_batch_size": 16}, "blend the clips of a micro-batch"),
    ],
)
def test_settings_that_contradict_each_other_are_named(repository: Path, classifier: dict[str, Any], said: str) -> None:
    assert said in mistake(repository, {"name": "a", "path": "/m"} | classifier)
