"""Evaluation from rows that engines have written: metrics, calibration on the validation split, predictions made elsewhere, the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from miniature.world import sample_world
from miniature.write import write_world
from ray_jobs.evaluate import evaluate, held_out, prediction_work, read_calibrations
from ray_jobs.pipeline import make_report, make_summary, results_table
from ray_jobs.provenance import read_sources
from ray_jobs.run import Run
from rbft import artifacts, rows, storage
from rbft.config import load_config
from rbft.errors import ConfigError, DataError
from rbft.evaluation import measures
from rbft.evaluation.calibration import Calibration
from rbft.evaluation.imported import add_to_run, read_imported
from rbft.evaluation.looking.attention_map import AttentionMap, maps_table
from rbft.evaluation.predictions import predictions_table
from rbft.rationales.table import rationales_table
from rbft.records import Example, Prediction, Rationale, prediction_schema
from tests.tiny_models import make_tiny_model

LABELS = ("normal", "abnormal")
SYSTEM = "zero-shot"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name a world with three splits and a model."""
    world = write_world(tmp_path_factory.mktemp("world"), sample_world(seed=5, sizes={"train": 4, "validation": 12, "test": 8}))
    return [f"data.manifest={world}", f"model.path={make_tiny_model(tmp_path_factory.mktemp('model'))}"]


def _open(repository: Path, folder: Path, sources: list[str], *overrides: str) -> Run:
    always = [f"output_dir={folder}", f"evaluation.systems=[{SYSTEM}]", "evaluation.num_report_samples=0"]
    return Run(load_config(repository / "configs/miniature.yaml", [*always, *sources, *overrides]))


def _said(examples: list[Example]) -> list[Prediction]:
    """What an engine would have answered: too sure of itself, and every fourth time wrong."""
    found = []
    for i, example in enumerate(examples):
        truth = LABELS.index(str(example.label))
        given = LABELS[truth if i % 4 else 1 - truth]
        shares = {label: 0.99 if label == given else 0.01 for label in LABELS}
        found.append(Prediction(example.id, example.label, given, shares, {}, given, given))
    return found


def _answer(run: Run, use: str) -> None:
    work = prediction_work(run, SYSTEM, run.config.model, run.config.evaluation.engine, use)  # type: ignore[arg-type]
    rows.write_part(work.folder, predictions_table(_said(list(work.examples))))


def test_a_run_is_calibrated_on_validation_and_reports_both_numbers(repository: Path, tmp_path: Path, sources: list[str]) -> None:
    run = _open(repository, tmp_path, sources, "evaluation.calibrate=true")
    for use in ("evaluation", "calibration"):
        _answer(run, use)
    evaluate([run])  # everything is there: no engine starts
    fitted = read_calibrations(run)[SYSTEM]
    assert fitted.num_clips == 12 and fitted.temperature > 2  # 99 % sure, and right in 9 of 12
    folder = run.artifact(f"calibration/{SYSTEM}")
    assert Calibration.model_validate(storage.read_json(f"{folder}/calibration.json")) == fitted
    metrics = storage.read_json(f"{run.artifact(f'evaluation/{SYSTEM}')}/metrics.json")
    assert metrics["likelihood"]["accuracy"] == 0.75 and metrics["probabilities"]["num_clips"] == 8

    report = make_report(run)
    (system,) = report.systems
    assert system.calibrated is not None and system.probabilities is not None
    assert system.calibrated.probabilities.ece < system.probabilities.ece
    (source,) = report.sources
    assert (source.split, source.num_videos, source.facts["engine"]) == ("test", 8, run.config.evaluation.engine)
    for file, sha256 in source.files:
        assert file.startswith(f"evaluation/{SYSTEM}/") and artifacts.file_sha256(f"{run.layout.root}/{file}") == sha256
    assert [what for what, _, _ in source.more] == ["validation predictions", "calibration"]
    for _, file, sha256 in source.more:
        assert file.startswith(f"calibration/{SYSTEM}/") and artifacts.file_sha256(f"{run.layout.root}/{file}") == sha256
    assert artifacts.file_sha256(run.layout.manifest) in report.provenance["manifest"]
    text = Path(run.layout.report).read_text()
    assert f"calibrated: temperature {fitted.temperature:.3f}" in text
    assert "AUROC" in results_table(report) and "always 'abnormal'" in results_table(report)
    summary = make_summary(run, report)
    assert summary["systems"][SYSTEM]["ece"] == system.probabilities.ece
    assert {part.by for part in system.slices} >= {"duration"}


def test_metrics_are_computed_again_only_when_something_they_are_made_of_has_changed(
    repository: Path, tmp_path: Path, sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _open(repository, tmp_path, sources, "evaluation.calibrate=true")
    for use in ("evaluation", "calibration"):
        _answer(run, use)
    evaluate([run])
    true = make_report(run).systems[0]
    folder = run.artifact(f"evaluation/{SYSTEM}")
    for file, value in (("metrics.json", 77.0), ("calibrated.json", 78.0)):  # as no computation would give
        kept = storage.read_json(f"{folder}/{file}")
        kept["probabilities"]["brier"] = value
        storage.write_json(f"{folder}/{file}", kept)

    again = _open(repository, tmp_path, sources, "evaluation.calibrate=true")
    evaluate([again])
    (system,) = make_report(again).systems
    assert system.probabilities is not None and system.calibrated is not None
    assert system.probabilities.brier == 77.0 and system.calibrated.probabilities.brier == 78.0

    reseeded = _open(repository, tmp_path, sources, "evaluation.calibrate=true", "seed=8")
    evaluate([reseeded])
    (system,) = make_report(reseeded).systems
    assert reseeded.artifact(f"evaluation/{SYSTEM}") == folder and system.probabilities is not None and true.probabilities is not None
    assert system.probabilities.brier == true.probabilities.brier
    storage.write_bytes(f"{folder}/metrics.json", b"{")
    assert make_report(reseeded).systems[0].probabilities == system.probabilities

    kept = storage.read_json(f"{folder}/metrics.json")
    kept["probabilities"]["brier"] = 79.0
    storage.write_json(f"{folder}/metrics.json", kept)
    monkeypatch.setattr(measures, "code_sha256", lambda: "of another way to compute them")
    assert make_report(reseeded).systems[0].probabilities == system.probabilities


def test_without_being_asked_validation_videos_are_left_alone(repository: Path, tmp_path: Path, sources: list[str]) -> None:
    run = _open(repository, tmp_path, sources)
    _answer(run, "evaluation")
    evaluate([run])
    assert read_calibrations(run) == {} and not storage.exists(f"{run.layout.root}/calibration")
    assert make_report(run).systems[0].calibrated is None


def test_calibration_without_a_validation_split_is_refused(repository: Path, tmp_path: Path, sources: list[str]) -> None:
    with pytest.raises(ConfigError, match="calibrate fits on the validation split"):
        _open(repository, tmp_path, sources, "evaluation.calibrate=true", "evaluation.split=validation")
    run = _open(repository, tmp_path, sources, "evaluation.calibrate=true")
    run.__dict__["examples"] = [example for example in run.examples if example.split != "validation"]
    with pytest.raises(DataError, match=r"no labelled video in split 'validation'; set evaluation\.calibrate to false"):
        held_out(run, "calibration")


def test_predictions_made_elsewhere_stand_in_the_report_and_only_for_the_same_videos(
    repository: Path, tmp_path: Path, sources: list[str]
) -> None:
    run = _open(repository, tmp_path, sources)
    _answer(run, "evaluation")
    evaluate([run])
    source = tmp_path / "videomae.csv"
    source.write_text("as it came")
    answers = [Prediction(example.id, example.label, example.label) for example in held_out(run)]
    add_to_run(run.layout.root, "videomae", answers, source)
    reopened = _open(repository, tmp_path, sources)
    report = make_report(reopened)
    assert report.title == "RB-FT: miniature world", "as data.title says"
    assert [system.name for system in report.systems] == ["videomae", SYSTEM]
    assert report.systems[0].main.accuracy == 1 and report.systems[0].probabilities is None
    assert report.sources[0].facts == {"imported from": "videomae.csv", "SHA-256 of what was imported": artifacts.file_sha256(source)}

    corrected = [replace(example, label="normal" if example.label == "abnormal" else "abnormal") for example in held_out(run)]
    with pytest.raises(DataError, match="videomae were imported when 8 videos had other labels"):
        read_imported(reopened.fact("imported", {}), corrected)

    source.write_text("with one video less")
    add_to_run(run.layout.root, "videomae", answers[1:], source)
    with pytest.raises(DataError, match="the predictions of videomae were imported for other test videos"):
        make_report(_open(repository, tmp_path, sources))


def test_the_reports_videos_have_frames_rationales_and_attention_and_are_asked_about_once(
    repository: Path, tmp_path: Path, sources: list[str]
) -> None:
    run = _open(repository, tmp_path, sources, "evaluation.num_report_samples=8")
    _answer(run, "evaluation")
    evaluate([run])
    ids = [example.id for example in held_out(run)]
    folder = str(run.artifact(f"evaluation/{SYSTEM}"))
    rows.write_part(f"{folder}/samples", rationales_table([Rationale(id_, 0, text=f"said of {id_}") for id_ in ids]))
    settings = artifacts.fingerprint(run.config.evaluation.attention.model_dump(mode="json", exclude={"num_shown"}))
    looks = {id_: AttentionMap(np.full(12, 1 / 12, np.float32), np.full((2, 2, 3), 1 / 12, np.float32)) for id_ in ids[1:]}
    attention = rows.write_part(f"{folder}/attention-{settings}", maps_table(looks, {ids[0]: "video_decode"}))

    report = make_report(run)  # everything is kept: no engine starts
    assert {video.id for video in report.videos} == set(ids) and [video.wrong for video in report.videos] == [True] * 2 + [False] * 6
    assert all(video.rationale and video.rationale.text == f"said of {video.id}" for video in report.videos)
    assert {video.id for video in report.videos if video.attention is not None} == set(ids[1:])
    assert all(video.clip is not None for video in report.videos)
    assert all(f"said of {id_}" in Path(run.layout.report).read_text() for id_ in ids)

    storage.write_bytes(attention, b"not Parquet")
    without = make_report(run)
    assert not without.has_attention and "No attention is shown" in without.notes[0]
    assert "No attention is shown" in Path(run.layout.report).read_text()


def test_sources_name_the_predictions_of_every_seed_and_the_counts_of_an_api_model(
    repository: Path, tmp_path: Path, sources: list[str]
) -> None:
    run = _open(repository, tmp_path, sources, "evaluation.systems=[direct-sft-1]", "training.seeds=[8]", "evaluation.api_models=[gpt-4o]")
    said = _said(held_out(run))
    for each, system in [*((each, "direct-sft-1") for each in run.all_seeds()), (run, "gpt-4o")]:
        folder = run.layout.evaluation(system, f"of-seed-{each.config.seed}")
        rows.write_part(folder, predictions_table(said))
        rows.finish(folder, "predictions", prediction_schema(), [row.id for row in said], "0f", {})
        each.record_artifact(f"evaluation/{system}", folder)
    storage.write_json(f"{run.artifact('evaluation/gpt-4o')}/usage.json", {"cost_usd": 1.0})
    found = {source.system: source for source in read_sources(run, {"gpt-4o": said, "direct-sft-1": said})}
    assert {name: [what for what, _, _ in source.more] for name, source in found.items()} == {
        "gpt-4o": ["tokens and costs"],
        "direct-sft-1": ["predictions, seed 8"],
    }
    for source in found.values():
        for file, sha256 in (*source.files, *(known[1:] for known in source.more)):
            assert artifacts.file_sha256(f"{run.layout.root}/{file}") == sha256
