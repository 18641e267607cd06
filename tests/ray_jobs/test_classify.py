"""Labels for a manifest without any, from rows that engines have written: what is asked, what is kept, what is written."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from miniature.world import sample_world
from miniature.write import write_world
from ray_jobs import classify as job
from ray_jobs.work import Work
from rbft import rows
from rbft.config import RunConfig, load_config
from rbft.data.manifest import read_manifest, write_manifest
from rbft.errors import JobError
from rbft.evaluation.calibration import Calibration
from rbft.evaluation.predictions import predictions_table
from rbft.records import Prediction
from rbft.storage import write_json
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos without labels and splits."""
    folder = tmp_path_factory.mktemp("world")
    world = write_world(folder, sample_world(seed=5, sizes={"test": 6}))
    path = folder / "unlabelled.parquet"
    write_manifest([replace(example, label=None, split=None, category=None) for example in read_manifest(world)], str(path))
    return path


@pytest.fixture
def config(repository: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, manifest: Path) -> RunConfig:
    model = make_tiny_model(tmp_path_factory.mktemp("model"))
    overrides = [f"output_dir={tmp_path}", f"data.manifest={manifest}", f"model.path={model}", "serve.system=zero-shot"]
    return load_config(repository / "configs/miniature.yaml", [*overrides, "data.max_bad_fraction=0.2"])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The ids that each run of the actors is asked about; the first video cannot be used, of the others 0.6 is the second label's."""
    calls: list[list[str]] = []

    def run_inference(config: RunConfig, engine: str, work: Sequence[Work], progress: object) -> float:
        for item in work:
            calls.append([example.id for example in item.examples])
            found = [
                Prediction(example.id, None, None, error_code="video_decode", error_message="cut short")
                if example.id.endswith("00000")
                else Prediction(example.id, None, "abnormal", {"normal": 0.4, "abnormal": 0.6}, {"normal": -0.9163, "abnormal": -0.5108})
                for example in item.examples
            ]
            rows.write_part(item.folder, predictions_table(found))
        return 0.0

    monkeypatch.setattr(job, "run_inference", run_inference)
    return calls


def _written(output: Path) -> list[dict[str, str]]:
    with (output / "labels.csv").open() as table:
        return list(csv.DictReader(table))


def test_every_video_gets_a_line_and_none_is_asked_about_twice(
    config: RunConfig, manifest: Path, tmp_path: Path, asked: list[list[str]]
) -> None:
    output = tmp_path / "labels"
    predictions = job.classify(config, str(manifest), str(output))
    lines = _written(output)
    assert [line["id"] for line in lines] == [row.id for row in predictions] == asked[0] and len(lines) == 6
    assert lines[0] | {"id": ""} == {"id": "", "label": "", "probability": "", "error": "video_decode"}
    assert {(line["label"], line["probability"]) for line in lines[1:]} == {("abnormal", "0.600000")}
    job.classify(config, str(manifest), str(output))
    assert len(asked) == 1
    job.classify(config, str(manifest), str(output), retry_errors=True)
    assert asked[1:] == [asked[0][:1]]


def test_what_is_there_is_not_asked_again_after_a_job_that_was_cut_short(
    config: RunConfig, manifest: Path, tmp_path: Path, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "labels"
    finish = rows.finish
    monkeypatch.setattr(rows, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        job.classify(config, str(manifest), str(output))
    monkeypatch.setattr(rows, "finish", finish)
    job.classify(config, str(manifest), str(output))
    assert [len(ids) for ids in asked] == [6, 0] and len(_written(output)) == 6


def test_the_calibration_of_the_service_is_that_of_the_table(
    config: RunConfig, manifest: Path, tmp_path: Path, asked: list[list[str]]
) -> None:
    fitted = Calibration(
        **{"labels": ("normal", "abnormal"), "temperature": 1.0, "threshold": 0.7, "num_clips": 9},
        **{"log_loss_before": 1.0, "log_loss_after": 0.9},
    )
    write_json(f"{tmp_path}/calibration.json", fitted.model_dump(mode="json"))
    serve = config.serve.model_copy(update={"calibration": f"{tmp_path}/calibration.json"})
    job.classify(config.model_copy(update={"serve": serve}), str(manifest), str(tmp_path / "labels"))
    assert {line["label"] for line in _written(tmp_path / "labels")[1:]} == {"normal"}


def test_answers_to_something_else_are_not_mixed(config: RunConfig, manifest: Path, tmp_path: Path, asked: list[list[str]]) -> None:
    job.classify(config, str(manifest), str(tmp_path / "labels"))
    other = config.model_copy(update={"task": config.task.model_copy(update={"question": "Is it?"})})
    with pytest.raises(JobError, match="give another --output"):
        job.classify(other, str(manifest), str(tmp_path / "labels"))


def test_too_many_videos_that_cannot_be_used_fail_the_job_with_the_table_written(
    config: RunConfig, manifest: Path, tmp_path: Path, asked: list[list[str]]
) -> None:
    strict = config.model_copy(update={"data": config.data.model_copy(update={"max_bad_fraction": 0.0})})
    with pytest.raises(JobError, match="1 of 6 videos"):
        job.classify(strict, str(manifest), str(tmp_path / "labels"))
    assert len(_written(tmp_path / "labels")) == 6
