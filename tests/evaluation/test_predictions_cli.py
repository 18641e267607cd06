"""`rbft compare` and `rbft predictions`, as a person runs them on a run's folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rbft import artifacts, cli, rows, storage
from rbft.data.manifest import write_manifest
from rbft.evaluation.locate import find_predictions
from rbft.evaluation.predictions import predictions_table, read_predictions, write_predictions
from rbft.layout import RunLayout
from rbft.records import Example, Prediction, prediction_schema
from tests.samples import TASK

NUM_TEST, NUM_VALIDATION = 40, 30


def _truth(i: int) -> str:
    return TASK.labels[i % 3 % 2]


def _texts(num_clips: int, wrong_every: int) -> list[Prediction]:
    """Of a model that tells no likelihoods."""
    said = [(row.id, row.label, row.predicted) for row in _answers("test", num_clips, wrong_every)]
    return [Prediction(id_, label, None, generated=f"{given}.", generated_label=given) for id_, label, given in said]


def _answers(split: str, num_clips: int, wrong_every: int) -> list[Prediction]:
    answers = []
    for i in range(num_clips):
        predicted = _truth(i) if i % wrong_every else TASK.labels[1 - TASK.labels.index(_truth(i))]
        sure = 0.55 + 0.4 * (i % 7) / 7
        shares = {label: sure if label == predicted else 1 - sure for label in TASK.labels}
        answers.append(Prediction(f"{split}-{i:02d}", _truth(i), predicted, shares))
    return answers


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with two evaluated systems, and one evaluated on validation; and a configuration that means it."""
    folder = tmp_path / "runs" / "homes"
    layout = RunLayout(str(folder))
    splits = [*(("test", i) for i in range(NUM_TEST)), *(("validation", i) for i in range(NUM_VALIDATION))]
    examples = [Example(f"{split}-{i:02d}", f"{tmp_path}/{split}-{i:02d}.mp4", _truth(i), split) for split, i in splits]
    write_manifest(examples, layout.manifest)
    systems = {
        "rb-ft": _answers("test", NUM_TEST, 10),
        "direct-sft-2": _answers("test", NUM_TEST, 4),
        "gpt-4o": _texts(NUM_TEST, 20),
        "zero-shot": _answers("validation", NUM_VALIDATION, 5),
    }
    known = {}
    for system, predictions in systems.items():
        known[f"evaluation/{system}"] = layout.evaluation(system, f"of-{system}")
        rows.write_part(layout.evaluation(system, f"of-{system}"), predictions_table(predictions))
        rows.finish(
            layout.evaluation(system, f"of-{system}"),
            "predictions",
            prediction_schema(),
            [row.id for row in predictions],
            f"of-{system}",
            {},
        )
    storage.write_json(layout.run_json, {"artifacts": known})
    model = tmp_path / "model"
    model.mkdir()
    config = {
        "name": "homes",
        "output_dir": str(tmp_path / "runs"),
        "task": TASK.model_dump(mode="json"),
        "data": {"manifest": layout.manifest},
        "model": {"path": str(model)},
    }
    for path in (layout.config, str(tmp_path / "homes.yaml")):
        storage.write_json(path, config)  # JSON is YAML
    return folder


def test_two_systems_of_a_run_are_compared(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", f"{run}/rb-ft", f"{run}/direct-sft-2"]) == 0
    text = capsys.readouterr().out
    assert "40 clips, by label likelihood" in text
    assert "AUROC" in text and "permutation p" in text
    assert "only rb-ft is right: 8 (test-04, test-08, test-12" in text
    assert "only direct-sft-2 is right: 2 (test-10, test-30)" in text  # 0 and 20 are wrong by both, with the same answer
    assert "McNemar's exact test of the accuracies: p = 0.109" in text  # 2 of 10
    assert "both wrong, with other answers: 0" in text


def test_the_json_has_what_the_text_shortens(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", f"{run}/rb-ft", f"{run}/direct-sft-2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["comparison"]["only_system"]) == 8
    assert found["comparison"]["mcnemar_p"] == pytest.approx(0.109375)
    assert found["systems"]["system"]["metrics"]["accuracy"] == pytest.approx(0.9)
    assert found["systems"]["baseline"]["probabilities"]["num_clips"] == NUM_TEST


def test_a_run_and_a_file_are_compared_by_the_labels_of_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_predictions([Prediction(f"test-{i:02d}", _truth(i), "normal") for i in range(NUM_TEST)], f"{tmp_path}/constant.parquet")
    assert cli.main(["compare", f"{tmp_path}/constant.parquet", f"{run}/rb-ft"]) == 0
    assert "constant" in capsys.readouterr().out


def test_a_system_that_tells_no_likelihoods_is_compared_by_its_text(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["compare", f"{run}/gpt-4o", f"{run}/rb-ft", "--html", f"{tmp_path}/difference.html"]) == 0
    text = capsys.readouterr().out
    assert "40 clips, gpt-4o by generated text, rb-ft by label likelihood" in text
    (accuracy,) = (line for line in text.splitlines() if line.startswith("accuracy"))
    assert "95.00 %" in accuracy and "90.00 %" in accuracy  # wrong are 2 and 4 of 40
    (answered,) = (line for line in text.splitlines() if line.startswith("answered"))
    assert answered.split() == ["answered", "100.00", "%", "100.00", "%"]
    assert "only gpt-4o is right: 2 (test-10, test-30)" in text
    page = (tmp_path / "difference.html").read_text()
    assert "gpt-4o by generated text, rb-ft by label likelihood" in page and "the greedily generated text names" in page


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("likelihood", "gpt-4o: has no answers by label likelihood, only by generated text"),
        ("generate", "rb-ft: has no answers by generated text, only by label likelihood"),
    ],
)
def test_a_system_is_not_compared_by_answers_that_it_has_not_given(
    run: Path, capsys: pytest.CaptureFixture[str], mode: str, says: str
) -> None:
    assert cli.main(["compare", f"{run}/gpt-4o", f"{run}/rb-ft", "--mode", mode]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("rb-fx", "has no predictions of 'rb-fx'; it has those of direct-sft-2, gpt-4o, rb-ft, zero-shot"),
        ("../nowhere/x", "no predictions there"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(run: Path, capsys: pytest.CaptureFixture[str], where: str, says: str) -> None:
    assert cli.main(["compare", f"{run}/rb-ft", f"{run}/{where}"]) == 2
    assert says in capsys.readouterr().err


def test_a_run_that_was_moved_is_still_found(run: Path) -> None:
    moved = run.rename(run.parent / "moved")
    assert len(find_predictions(f"{moved}/rb-ft").predictions) == NUM_TEST


def test_predictions_made_elsewhere_join_the_run_once(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = tmp_path / "videomae.csv"
    answers.write_text("id,predicted\n" + "".join(f"test-{i:02d},{_truth(i)}\n" for i in range(NUM_TEST)))
    command = ["predictions", "import", str(answers), "--config", f"{tmp_path}/homes.yaml", "--name", "videomae"]
    assert cli.main(command) == 0
    assert "100.00 %" in capsys.readouterr().out
    facts = storage.read_json(RunLayout(str(run)).run_json)
    folder = facts["imported"]["videomae"]
    assert artifacts.is_complete(folder) and facts["artifacts"]["evaluation/videomae"] == folder
    assert cli.main(command) == 0
    assert storage.read_json(RunLayout(str(run)).run_json) == facts
    answers.write_text(answers.read_text().replace("predicted", "answer"))
    assert cli.main([*command, "--answer-column", "answer"]) == 0
    assert storage.read_json(RunLayout(str(run)).run_json) == facts  # another file that says the same
    capsys.readouterr()
    assert cli.main(["compare", f"{run}/rb-ft", f"{run}/videomae"]) == 0
    assert "only videomae is right: 4" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "says"), [("rb-ft", "a system that runs make themselves"), ("../x", "a folder's name")])
def test_an_imported_system_cannot_take_the_name_of_another(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, says: str
) -> None:
    answers = tmp_path / "a.csv"
    answers.write_text("id,predicted\n" + "".join(f"test-{i:02d},normal\n" for i in range(NUM_TEST)))
    assert cli.main(["predictions", "import", str(answers), "--config", f"{tmp_path}/homes.yaml", "--name", name]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("form", ["csv", "label-studio", "fiftyone"])
def test_the_least_certain_are_exported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    out = tmp_path / "out.json"
    command = ["predictions", "export", f"{run}/rb-ft", "--format", form, "--out", str(out), "--below", "0.6", "--limit", "5"]
    assert cli.main([*command, *(["--replace", f"{tmp_path}=https://example.org"] if form == "label-studio" else [])]) == 0
    assert "wrote 5 of 40 predictions of rb-ft" in capsys.readouterr().out
    text = out.read_text(encoding="utf-8-sig")
    assert text.count("test-00") >= 1 and "test-01" not in text  # 0.55 sure, and 0.607
    if form == "label-studio":
        assert "https://example.org/test-00.mp4" in text and '<Choice value="normal"/>' in (tmp_path / "out.xml").read_text()


def test_mistakes_of_a_system_that_tells_no_likelihoods_are_exported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predictions", "export", f"{run}/gpt-4o", "--wrong", "--out", f"{tmp_path}/out.csv"]) == 0
    assert "wrote 2 of 40 predictions of gpt-4o" in capsys.readouterr().out


def test_calibration_is_fitted_on_validation_and_applied_to_test(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["predictions", "calibrate", f"{run}/zero-shot", "--out", f"{tmp_path}/calibration.json"]
    assert cli.main([*command, "--apply", f"{run}/rb-ft", "--apply-out", f"{tmp_path}/calibrated.parquet"]) == 0
    text = capsys.readouterr().out
    assert "from 30 validation videos: log-loss" in text and "calibrated" in text
    assert storage.read_json(f"{tmp_path}/calibration.json")["temperature"] > 0
    assert len(read_predictions(f"{tmp_path}/calibrated.parquet")) == NUM_TEST


def test_calibration_refuses_test_predictions(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predictions", "calibrate", f"{run}/rb-ft", "--out", f"{tmp_path}/calibration.json"]) == 2
    assert "is of the split test; calibration is fitted on the validation split only" in capsys.readouterr().err
    assert not (tmp_path / "calibration.json").exists()
