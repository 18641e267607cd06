"""Where a run is, told from folders as real jobs leave them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from miniature.world import sample_world
from miniature.write import write_world
from ray_jobs.generate import generate
from ray_jobs.run import Run
from ray_jobs.stages import plan_stages
from rbft import artifacts, attempts, cli, rows
from rbft.config import load_config
from rbft.errors import ArtifactError, JobError
from rbft.lease import Lease
from rbft.rationales.table import rationales_table
from rbft.records import Example, Rationale
from rbft.run_status import RunStatus, Step, format_status, read_status
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A manifest of 8 training and 4 test videos, and a model."""
    folder = tmp_path_factory.mktemp("sources")
    return write_world(folder, sample_world(seed=5, sizes={"train": 8, "test": 4})), make_tiny_model(folder / "model")


@pytest.fixture
def run(repository: Path, tmp_path: Path, sources: tuple[Path, Path]) -> Run:
    settings = (f"output_dir={tmp_path}", f"data.manifest={sources[0]}", f"model.path={sources[1]}")
    run = Run(load_config(repository / "configs/miniature.yaml", [*settings, "evaluation.systems=[zero-shot,direct-sft-1,rb-ft]"]))
    with run.timed("manifest"):
        assert run.examples
    return run


def steps(run: Run) -> dict[str, Step]:
    return {step.name: step for step in read_status(run.layout.root).steps}


def write(run: Run, examples: list[Example], error_code: str | None = None) -> None:
    folder = run.layout.rationales(run.rationale_fingerprint())
    made = [Rationale(e.id, 0, None if error_code else f"a dog {e.id}", finish_reason="stop", error_code=error_code) for e in examples]
    rows.write_part(folder, rationales_table(made))


def test_a_run_that_has_just_begun_has_everything_to_do(run: Run) -> None:
    found = steps(run)
    assert list(found) == [
        *("manifest", "rationales", "train direct-sft-1/classify", "train rb-ft/rationale", "train rb-ft/classify"),
        *("evaluate zero-shot", "evaluate direct-sft-1", "evaluate rb-ft", "report"),
    ]
    assert found["manifest"] == Step("manifest", "done", 12, 12, "videos")
    assert found["rationales"] == Step("rationales", "to do", 0, 8, "videos") and found["evaluate rb-ft"].total == 4
    assert all(step.state == "to do" for name, step in found.items() if name != "manifest")


def test_rows_are_counted_with_their_errors_and_suspects(run: Run) -> None:
    run.record_artifact("rationales", run.layout.rationales(run.rationale_fingerprint()))
    cohort = run.cohort()
    write(run, cohort[:3])
    write(run, cohort[3:5], "video_decode")
    write(run, cohort[3:4])  # tried again, with success
    attempts.blame(run.layout.rationales(run.rationale_fingerprint()), "block", [example.id for example in cohort[5:7]], "job")
    found = steps(run)["rationales"]
    assert found == Step("rationales", "begun", 5, 8, "videos", errors={"video_decode": 1}, num_suspects=2)
    told = format_status(read_status(run.layout.root))
    assert "rationales                   begun  5/8 videos, 1 errors (video_decode 1), 2 were in an engine that died" in told
    assert "submit it again, it goes on where it stopped; with --retry-errors, the 1 videos with errors are tried again: " in told


def test_rows_that_are_joined_while_they_are_counted_are_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run.layout.rationales(run.rationale_fingerprint())
    run.record_artifact("rationales", folder)
    cohort = run.cohort()
    write(run, cohort)
    count = rows.outcomes
    counted: list[str] = []

    def count_late(folder: str, schema: Any) -> dict[str, str | None]:
        if not counted:
            counted.append(folder)
            rows.finish(folder, "rationales", schema, [example.id for example in cohort], "0123", {})
            raise ArtifactError(f"{folder}/parts/part.parquet: cannot be read as Parquet (No such file or directory)")
        return count(folder, schema)

    monkeypatch.setattr(rows, "outcomes", count_late)
    assert steps(run)["rationales"] == Step("rationales", "done", 8, 8, "videos")


def test_training_is_as_far_as_its_log_and_would_go_on_from_its_last_whole_checkpoint(run: Run) -> None:
    run.record_artifact("rationales", run.layout.rationales(run.rationale_fingerprint()))
    write(run, run.cohort())
    generate([run])
    stages = {planned.spec.name: Path(planned.spec.folder) for planned in plan_stages(run)}
    folder = stages["rb-ft/rationale"]
    for step in (10, 20, 30):
        (folder / f"checkpoints/step-{step:08d}").mkdir(parents=True)
        if step < 30:  # the last was being written
            artifacts.mark_complete(str(folder / f"checkpoints/step-{step:08d}"), "f" * 16, {}, {})
    lines = [{"step": step, "num_steps": 64, "loss": 2 / step} for step in (30, 31)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3')
    final = stages["direct-sft-1/classify"] / "final"
    artifacts.mark_complete(str(final), "f" * 16, {}, {})
    found = steps(run)
    assert found["rationales"].state == "done" and found["train direct-sft-1/classify"].state == "done"
    assert found["train rb-ft/rationale"] == Step("train rb-ft/rationale", "begun", 31, 64, "steps", 20, 2 / 31)
    assert "31/64 steps, loss 0.065, would go on from step 20" in format_status(read_status(run.layout.root))


def test_a_folder_that_was_moved_says_the_same(run: Run, tmp_path: Path) -> None:
    run.record_artifact("rationales", run.layout.rationales(run.rationale_fingerprint()))
    write(run, run.cohort())
    before = read_status(run.layout.root)
    moved = shutil.move(run.layout.root, tmp_path / "elsewhere")
    after = read_status(f"{moved}/")
    assert after.steps == before.steps and after.folder == str(moved)


def test_each_seed_has_steps_of_its_own(run: Run) -> None:
    run.config = run.config.model_copy(update={"training": run.config.training.model_copy(update={"seeds": (7,)})})
    Run(run.config)
    names = list(steps(run))
    assert "train seed-7/rb-ft/classify" in names and "evaluate seed-7/rb-ft" in names and "evaluate seed-7/zero-shot" not in names


def outcome(run: Run) -> RunStatus:
    return read_status(run.layout.root)


def test_who_works_there_and_how_the_last_one_ended(run: Run) -> None:
    assert outcome(run).job is None and outcome(run).ended is None
    with Lease(run.layout.root, "rbft pipeline"):
        now = outcome(run)
        assert now.job is not None and now.job["command"] == "rbft pipeline" and now.advice == "wait: a job works there"
        assert "at work: rbft pipeline (process " in format_status(now)
    with pytest.raises(JobError), run.timed("generate"):
        raise JobError("no\nroom")
    assert outcome(run).ended == "failed in generate: no room"
    with pytest.raises(KeyboardInterrupt), run.timed("train"):
        raise KeyboardInterrupt
    assert outcome(run).ended == "failed in train: interrupted"


def test_a_step_that_never_ended_was_killed(run: Run) -> None:
    facts = json.loads(Path(run.layout.run_json).read_text())
    facts["timeline"].append({"step": "train", "began": "2026-01-31T10:00:00+00:00", "host": "here"})
    Path(run.layout.run_json).write_text(json.dumps(facts))
    assert outcome(run).ended == "died in train (killed, or its machine went)"
    told = format_status(outcome(run), with_timeline=True)
    assert "2026-01-31 10:00:00 to ?         train on here" in told and "manifest on " in told


def test_the_command_tells_it_to_people_and_programs(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", run.layout.root]) == 1
    assert "no job works there" in capsys.readouterr().out
    with Lease(run.layout.root, "rbft pipeline"):
        assert cli.main(["status", run.layout.root, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["steps"][1]["total"] == 8 and found["job"]["command"] == "rbft pipeline" and not found["is_done"]
    assert [entry["step"] for entry in found["timeline"]] == ["manifest"]


def test_what_is_no_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ArtifactError, match="no run is there"):
        read_status(str(tmp_path))
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "error[artifact]: " in capsys.readouterr().err
