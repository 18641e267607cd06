"""Every recipe in configs/ loads, says what it is about, and can be planned where neither its data nor its model is."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
import yaml

from rbft.config import load_config, load_task
from rbft.plan import build_plan, format_plan

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RUNS = sorted(CONFIGS.glob("*.yaml"))
TASKS = sorted((CONFIGS / "tasks").glob("*.yaml"))
PAPER = [path for path in RUNS if path.name.startswith(("smarthome-", "multihateclip-"))]


def test_there_is_a_recipe_for_each_dataset_and_backbone_and_for_the_miniature() -> None:
    expected = {f"{data}-{model}" for data in ("smarthome", "multihateclip") for model in ("qwen2-vl-7b", "qwen2.5-vl-7b")}
    assert {path.stem for path in RUNS} >= expected | {"miniature", "specialised-smarthome", "specialised-multihateclip"}
    assert {path.stem for path in TASKS} >= {"smarthome", "multihateclip", "miniature"}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_recipe_loads_and_its_name_is_its_files(path: Path) -> None:
    assert load_config(path).name == path.stem


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_task_loads_and_its_question_names_every_label(path: Path) -> None:
    task = load_task(path)
    assert task.name == path.stem
    for label in task.labels:
        assert label in task.question.lower()
    assert [dimension.heading for dimension in task.dimensions] == ["Subjects", "Attributes", "Actions", "Scenes"]
    assert task.parse_label(task.rationale_prompt) is None


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_recipe_can_be_planned_without_its_data_and_model(path: Path, tmp_path: Path) -> None:
    data = next(key for key, value in yaml.safe_load(path.read_text())["data"].items() if isinstance(value, str))
    plan = build_plan(load_config(path, [f"data.{data}={tmp_path}/none", f"model.path={tmp_path}/none"]))
    text = format_plan(plan)
    assert text.startswith(f"Plan of {path.stem} (nothing has been started)")
    specialised = ("UniFormerV2", "InternVideo2")
    for system in specialised if path.stem.startswith("specialised-") else ("zero-shot", "direct-sft-1", "direct-sft-2", "rb-ft"):
        assert system in text
    assert not any("max_model_len" in note for note in plan.notes), "the largest video must fit the engine"


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_papers_recipes_hold_the_papers_values(path: Path) -> None:
    config = load_config(path)
    defaults = {"name": "x", "task": config.task, "data": config.data, "model": config.model}
    paper = type(config).model_validate(defaults)
    # Paper 4.1 is the default; a recipe may spell it out, never change it.
    for section in ("video", "engine", "generation", "training", "evaluation"):
        assert getattr(config, section) == getattr(paper, section)
    assert config.training.num_workers * config.training.num_gpus == 8
    assert config.engine.num_actors * config.engine.num_gpus == 8
    backbone = "Qwen2.5-VL-7B-Instruct" if "qwen2.5" in path.stem else "Qwen2-VL-7B-Instruct"
    assert Path(config.model.path).name == backbone


def test_the_miniature_keeps_the_papers_ratio_of_rates() -> None:
    training = load_config(CONFIGS / "miniature.yaml").training
    for optimiser in (training.rationale, training.classify):
        assert optimiser.lr_language / optimiser.lr_vision == pytest.approx(5)


def test_the_labels_of_the_datasets_are_those_of_their_annotations() -> None:
    smarthome, multihateclip = load_task(CONFIGS / "tasks" / "smarthome.yaml"), load_task(CONFIGS / "tasks" / "multihateclip.yaml")
    assert [smarthome.normalise_label(label) for label in ("Normal", "Abnormal", "Vague Abnormal")] == ["normal", "abnormal", "abnormal"]
    assert [multihateclip.normalise_label(label) for label in ("Normal", "Offensive", "Hateful")] == ["normal", "offensive", "hateful"]


@pytest.mark.parametrize("data", ["smarthome", "multihateclip"])
def test_the_specialised_models_have_published_recipes_and_the_papers_names(data: str) -> None:
    classifiers = load_config(CONFIGS / f"specialised-{data}.yaml").evaluation.video_classifiers
    assert [classifier.name for classifier in classifiers] == ["UniFormerV2", "InternVideo2"]
    uniformer, intern = classifiers
    assert (uniformer.learning_rate, uniformer.epochs, uniformer.num_clips, uniformer.num_crops) == (2e-5, 24, 4, 3)
    assert (intern.layer_decay, intern.drop_path_rate, intern.num_clips, intern.num_crops) == (0.75, 0.1, 4, 3)


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_lines_for_specialised_models_in_the_papers_recipes_are_right(path: Path) -> None:
    lines = path.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if "video_classifiers:" in line)
    uncommented = textwrap.dedent("\n".join(line.replace("#", " ", 1) for line in lines[start : start + 3]))
    given = yaml.safe_load(uncommented)["video_classifiers"]
    classifiers = load_config(path, [f"evaluation.video_classifiers={json.dumps(given)}"]).evaluation.video_classifiers
    assert [classifier.name for classifier in classifiers] == ["UniFormerV2", "InternVideo2"]
