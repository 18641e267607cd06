"""Which folder answers."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rbft import artifacts, storage
from rbft.cli import main
from rbft.config import DataConfig, ModelConfig, RunConfig, ServeConfig
from rbft.errors import ArtifactError, ModelError
from rbft.evaluation.calibration import Calibration
from rbft.layout import RunLayout
from rbft.models.export import export_model
from rbft.records import VideoSpec
from serve.model import find_model, open_model
from tests.serve.samples import SPEC, TASK

RUN_TASK = TASK.model_copy(update={"question": "the run's own question"})


def _config(output_dir: Path, system: str, model: Path) -> RunConfig:
    return RunConfig(
        name="run",
        output_dir=str(output_dir),
        task=RUN_TASK,
        data=DataConfig(folder="videos"),
        model=ModelConfig(path=str(model)),
        serve=ServeConfig(system=system),  # type: ignore[arg-type]
    )


@pytest.fixture
def made(tmp_path: Path, trained_folder: Path) -> RunConfig:
    """A run that has trained `rb-ft` to its end and `direct-sft-1` twice, the second time not to its end."""
    config = _config(tmp_path / "runs", "rb-ft", trained_folder)
    layout = RunLayout(config.run_dir)
    current = {}
    for system, fingerprint, complete in [("rb-ft", "aaaa", True), ("direct-sft-1", "bbbb", True), ("direct-sft-1", "cccc", False)]:
        stage = layout.train(system, "classify", fingerprint)
        shutil.copytree(trained_folder, f"{stage}/final")
        if complete:
            artifacts.publish(Path(stage) / "final", f"{stage}/final", fingerprint, {})
        current[f"train/{system}/classify"] = stage
    storage.write_json(layout.run_json, {"artifacts": current})
    return config


def test_a_trained_system_is_served_by_its_task_card_and_fingerprint(made: RunConfig) -> None:
    source = find_model(made)
    model = open_model(source, Path(source.uri), made)
    assert (model.version.name, model.version.fingerprint) == ("run/rb-ft", "aaaa")
    assert (model.task, model.spec) == (TASK, SPEC)


def test_a_run_that_was_moved_is_still_found(made: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    source = find_model(made.model_copy(update={"output_dir": str(tmp_path / "elsewhere")}))
    assert source.uri == f"{tmp_path}/elsewhere/run/train/rb-ft/classify/aaaa/final"


def test_zero_shot_is_the_base_model_asked_as_the_run_asks(made: RunConfig, trained_folder: Path) -> None:
    config = _config(Path(made.output_dir), "zero-shot", trained_folder)
    model = open_model(find_model(config), trained_folder, config)
    assert model.version.name == "run/zero-shot"
    assert (model.task, model.spec) == (RUN_TASK, config.video.spec())


def test_a_base_model_other_than_the_pinned_one_is_not_served(made: RunConfig, trained_folder: Path) -> None:
    config, right = _config(Path(made.output_dir), "zero-shot", trained_folder), artifacts.model_fingerprint(trained_folder)
    pinned = [config.model_copy(update={"model": ModelConfig(path=str(trained_folder), fingerprint=each)}) for each in (right, "0" * 16)]
    assert open_model(find_model(pinned[0]), trained_folder, pinned[0]).version.fingerprint == right
    with pytest.raises(ModelError, match=rf"its fingerprint is {right}, and model\.fingerprint says {'0' * 16}"):
        open_model(find_model(pinned[1]), trained_folder, pinned[1])
    trained = pinned[1].model_copy(update={"serve": made.serve})  # the pin is of its base
    assert open_model(find_model(trained), Path(find_model(trained).uri), trained).version.fingerprint == "aaaa"


def test_a_given_folder_answers_by_its_card_or_else_by_the_run(made: RunConfig, trained_folder: Path, tmp_path: Path) -> None:
    assert open_model(find_model(made, str(trained_folder)), trained_folder, made).task == TASK
    bare = shutil.copytree(trained_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("rbft.json"))
    model = open_model(find_model(made, str(bare)), bare, made)
    assert (model.version.name, model.task, model.spec) == ("bare", RUN_TASK, VideoSpec())


def test_a_run_that_is_not_made_or_not_finished_says_what_to_do(made: RunConfig, tmp_path: Path, trained_folder: Path) -> None:
    cases = {
        "has not been made here; run the pipeline": _config(tmp_path / "none", "rb-ft", trained_folder),
        "has trained no direct-sft-2 model yet; run": _config(Path(made.output_dir), "direct-sft-2", trained_folder),
        "not complete, its training was cut short; run": _config(Path(made.output_dir), "direct-sft-1", trained_folder),
    }
    for message, config in cases.items():
        with pytest.raises(ArtifactError, match=message):
            find_model(config)


def test_a_folder_without_weights_is_refused_before_anything_starts(made: RunConfig, trained_folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(trained_folder, tmp_path / "broken", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelError, match="no weights"):
        find_model(made, str(broken))


def test_the_command_ends_with_one_clear_line_when_it_cannot_start(tmp_path: Path, repository: Path) -> None:
    run = [sys.executable, "-m", "serve", "--config", str(tmp_path / "absent.yaml")]
    done = subprocess.run(run, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "absent.yaml" in done.stderr and done.stderr.count("\n") == 1


CALIBRATION = Calibration(labels=TASK.labels, temperature=2.0, threshold=0.3, num_clips=32, log_loss_before=0.7, log_loss_after=0.6)


def _calibrated(config: RunConfig, model: str, temperature: float) -> None:
    """Give the run a calibration of `rb-ft`, fitted on predictions of `model`."""
    layout = RunLayout(config.run_dir)
    folder = layout.calibration("rb-ft", "dddd")
    fitted = CALIBRATION.model_copy(update={"temperature": temperature})
    storage.write_json(f"{folder}/calibration.json", fitted.model_dump(mode="json"))
    artifacts.mark_complete(folder, "dddd", {}, {"model": model})
    facts = storage.read_json(layout.run_json)
    facts["artifacts"]["calibration/rb-ft"] = folder
    storage.write_json(layout.run_json, facts)


def _temperature(config: RunConfig, folder: str | None = None) -> float | None:
    source = find_model(config, folder)
    calibration = open_model(source, Path(source.uri), config).calibration
    return None if calibration is None else calibration.temperature


def test_what_the_run_fitted_for_this_very_model_is_used(made: RunConfig, tmp_path: Path) -> None:
    assert _temperature(made) is None
    _calibrated(made, "aaaa", 2.5)
    assert _temperature(made) == 2.5
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert _temperature(made.model_copy(update={"output_dir": str(tmp_path / "elsewhere")})) == 2.5


def test_what_was_fitted_before_the_model_was_trained_anew_is_not(made: RunConfig) -> None:
    _calibrated(made, "the one before", 2.5)
    assert _temperature(made) is None


def test_the_configuration_goes_before_the_card_and_the_card_before_the_run(made: RunConfig, tmp_path: Path) -> None:
    _calibrated(made, "aaaa", 2.5)
    source = find_model(made).uri
    carded = export_model(source, str(tmp_path / "out"), calibration=CALIBRATION.model_dump(mode="json"))
    assert carded.startswith("copied") and _temperature(made, str(tmp_path / "out")) == 2.0
    artifacts.verify(tmp_path / "out")
    file = tmp_path / "calibration.json"
    storage.write_json(str(file), CALIBRATION.model_copy(update={"temperature": 3.0}).model_dump(mode="json"))
    named = made.model_copy(update={"serve": ServeConfig(calibration=str(file))})
    assert _temperature(named) == _temperature(named, str(tmp_path / "out")) == 3.0


def test_a_calibration_of_other_labels_is_refused(made: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    storage.write_json(str(file), CALIBRATION.model_copy(update={"labels": ("a", "b")}).model_dump(mode="json"))
    with pytest.raises(ModelError, match=r"is of a, b; set serve\.calibration"):
        _temperature(made.model_copy(update={"serve": ServeConfig(calibration=str(file))}))
    out = tmp_path / "out"
    assert main(["export", find_model(made).uri, "--out", str(out), "--calibration", str(file)]) == 2
    assert not out.exists()
    file.write_text("{}")
    with pytest.raises(ArtifactError, match="no calibration can be read"):
        _temperature(made.model_copy(update={"serve": ServeConfig(calibration=str(file))}))
