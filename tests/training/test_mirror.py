"""A stage of a run on S3 (moto's, over HTTP): it ends as one on a disk does, whichever node takes it up, or says what is not saved."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from rbft import artifacts, storage
from rbft.data.samples import TrainingItem
from rbft.model_store import local_model
from rbft.training import mirror
from rbft.training.checkpoints import checkpoint_path, complete_checkpoints
from rbft.training.loop import run_stage
from rbft.training.stage import StageSpec
from tests.s3 import FlakyS3
from tests.training.stages import in_store, losses, make_items, make_stage, make_training, run_counted, run_until_killed, run_until_told
from tests.training.workers import run_workers

TRAINING = make_training(2, 2, checkpoint_every_steps=1)
STORE = "s3://runs/doors/train/rb-ft/classify/ffff"


@pytest.fixture(scope="module")
def items(videos: list[Path]) -> list[TrainingItem]:
    return make_items(videos)


@pytest.fixture(scope="module")
def on_disk(tiny_model: Path, items: list[TrainingItem], tmp_path_factory: pytest.TempPathFactory) -> StageSpec:
    """The same stage on a disk, which nobody interrupted: four steps."""
    spec = make_stage(tiny_model, tmp_path_factory.mktemp("stage"), TRAINING)
    run_workers(run_stage, 2, spec, items)
    return spec


@pytest.fixture
def stage(on_disk: StageSpec, tmp_path: Path) -> StageSpec:
    """The stage in a store, as one node works at it."""
    return replace(on_disk, folder=str(tmp_path / "node-a"), store=STORE)


def elsewhere(stage: StageSpec) -> StageSpec:
    """The same on another node, which has nothing yet."""
    return replace(stage, folder=f"{stage.folder}-other")


def stored() -> list[str]:
    """The files of the stage in the store, TensorBoard's left out."""
    _, root = storage.filesystem(STORE)
    names = [str(info.path).removeprefix(f"{root}/") for info in storage.list_files(STORE, recursive=True)]
    return [name for name in names if not name.startswith("tensorboard/")]


def stored_checkpoints() -> list[str]:
    return [name.split("/")[1] for name in stored() if name.startswith("checkpoints/") and name.endswith(f"/{artifacts.MARKER}")]


def stored_losses() -> list[float]:
    lines = [json.loads(line) for line in storage.read_bytes(f"{STORE}/log.jsonl").decode().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    return [line["loss"] for line in lines]


def test_killed_on_one_node_it_goes_on_on_another_and_ends_as_the_uninterrupted_one(
    on_disk: StageSpec, stage: StageSpec, items: list[TrainingItem], s3: FlakyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the fourth step: the checkpoint of the second was in the store before that of the third was begun."""
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_workers(in_store, 2, s3.environment, run_until_killed, stage, items, 3)
    assert stored_checkpoints()[-1] in ("step-00000002", "step-00000003")
    num_saved = int(stored_checkpoints()[-1][-8:])
    shutil.rmtree(stage.folder)
    other = elsewhere(stage)
    assert run_workers(in_store, 2, s3.environment, run_counted, other, items) == [4 - num_saved] * 2
    assert storage.read_bytes(f"{STORE}/final/model.safetensors") == (Path(on_disk.folder) / "final/model.safetensors").read_bytes()
    assert artifacts.is_complete(f"{STORE}/final", stage.fingerprint)
    assert stored_losses() == losses(on_disk)
    assert stored_checkpoints() == ["step-00000003", "step-00000004"]
    assert not any("/step-00000001/" in name for name in stored())
    assert not Path(other.folder).exists()
    monkeypatch.setenv("RBFT_MODEL_CACHE", str(tmp_path / "models"))
    # The model is one that the next stage, and evaluation, can start from on any node.
    assert artifacts.model_fingerprint(local_model(f"{STORE}/final")) == stage.fingerprint


def test_a_marker_is_the_last_of_its_files_and_the_log_is_there_before(stage: StageSpec, items: list[TrainingItem], s3: FlakyS3) -> None:
    run_workers(in_store, 2, s3.environment, run_stage, stage, items)
    root = STORE.removeprefix("s3://")
    for artifact in ("checkpoints/step-00000003", "checkpoints/step-00000004", "final"):
        parts = artifacts.read_marker(f"{STORE}/{artifact}")["parts"]
        marker = s3.written.index(f"{root}/{artifact}/{artifacts.MARKER}")
        assert parts and {f"{root}/{artifact}/{name}" for name in parts} <= set(s3.written[:marker])
        assert f"{root}/log.jsonl" in s3.written[:marker]


@pytest.mark.slow
def test_told_to_stop_it_comes_back_when_the_checkpoint_is_in_the_store(
    on_disk: StageSpec, stage: StageSpec, items: list[TrainingItem], s3: FlakyS3
) -> None:
    """And what a node has of earlier is of no use once another has gone further."""
    stage = replace(stage, training=make_training(2, 2, checkpoint_every_steps=1000))
    with pytest.raises(ProcessRaisedException, match=rf"TrainingStopped: .*saved {STORE}/checkpoints/step-0000000[12], the same"):
        run_workers(in_store, 2, s3.environment, run_until_told, stage, items, 0, 1)
    first = stored_checkpoints()
    assert len(first) == 1
    num_steps = int(first[0][-8:])
    s3.refused = "final/"
    with pytest.raises(ProcessRaisedException, match="CheckpointError"):
        run_workers(in_store, 2, s3.environment, run_stage, elsewhere(stage), items)
    s3.refused = None
    assert stored_checkpoints() == [f"step-{num_steps:08d}", "step-00000004"]
    assert run_workers(in_store, 2, s3.environment, run_counted, stage, items) == [0, 0]
    assert storage.read_bytes(f"{STORE}/final/model.safetensors") == (Path(on_disk.folder) / "final/model.safetensors").read_bytes()


@pytest.mark.parametrize("refused", ["checkpoints/step-00000002", "final/"])
def test_a_store_that_refuses_ends_the_stage_and_what_was_not_saved_is_saved_by_the_next(
    on_disk: StageSpec, stage: StageSpec, items: list[TrainingItem], s3: FlakyS3, refused: str
) -> None:
    s3.refused = refused
    with pytest.raises(ProcessRaisedException, match=rf"CheckpointError: {STORE}/.*: cannot be written .*ACCESS_DENIED.*mend the .*store"):
        run_workers(in_store, 2, s3.environment, run_stage, stage, items)
    assert not artifacts.is_complete(f"{STORE}/final")
    here = sorted(path.parent.name for path in Path(stage.folder).glob("checkpoints/step-*/COMPLETE.json"))
    assert (here == stored_checkpoints()) == (refused == "final/")
    s3.refused = None
    assert run_workers(in_store, 2, s3.environment, run_counted, stage, items) == [4 - int(here[-1][-8:])] * 2
    assert storage.read_bytes(f"{STORE}/final/model.safetensors") == (Path(on_disk.folder) / "final/model.safetensors").read_bytes()
    assert stored_losses() == losses(on_disk)


@pytest.mark.slow
def test_a_store_that_fails_now_and_then_is_asked_again(
    on_disk: StageSpec, stage: StageSpec, items: list[TrainingItem], s3: FlakyS3
) -> None:
    s3.fail_every(60)
    run_workers(in_store, 2, s3.environment, run_stage, stage, items)
    assert s3.num_failed > 14
    assert storage.read_bytes(f"{STORE}/final/model.safetensors") == (Path(on_disk.folder) / "final/model.safetensors").read_bytes()


def test_workers_that_do_not_share_the_scratch_are_refused(stage: StageSpec, items: list[TrainingItem], s3: FlakyS3) -> None:
    with pytest.raises(ProcessRaisedException, match=r"TrainingError: tiny/classify: 1 of 2 workers do not see .*set training\.scratch to"):
        run_workers(in_store, 2, s3.environment, run_apart, stage, items)
    assert stored() == []


def run_apart(stage: StageSpec, items: list[TrainingItem]) -> Any:
    """Each worker on a node of its own."""
    with mock.patch.object(mirror, "_SEEN_WITHIN_S", 0.5):
        return run_stage(replace(stage, folder=f"{stage.folder}-{os.environ['RANK']}"), items)


def test_the_newest_checkpoint_is_fetched_and_the_best_when_it_is_wanted(stage: StageSpec, s3: FlakyS3, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        artifacts.publish(make_checkpoint(tmp_path / "made", step), f"{STORE}/checkpoints/{checkpoint_path(Path(), step)}", "f", {})
    storage.write_bytes(f"{STORE}/checkpoints/step-00000004/state/1.pt", b"half")
    storage.write_bytes(f"{STORE}/validation.json", b"[]")
    assert run_workers(in_store, 2, s3.environment, fetch_and_save, stage) == [["step-00000003"], ["step-00000003"]]
    assert sorted(path.name for path in Path(stage.folder).iterdir()) == ["checkpoints", "validation.json"]
    assert [path.name for path in complete_checkpoints(Path(stage.folder) / "checkpoints")] == [f"step-0000000{step}" for step in (1, 3, 5)]
    artifacts.verify(Path(stage.folder) / "checkpoints/step-00000001")
    assert sorted({name.split("/")[1] for name in stored() if name.startswith("checkpoints/")}) == [
        f"step-0000000{step}" for step in (1, 3, 5)
    ]


def make_checkpoint(folder: Path, step: int) -> Path:
    """Something like one, without a marker."""
    path = checkpoint_path(folder, step)
    (path / "state").mkdir(parents=True)
    (path / "state/1.pt").write_bytes(bytes([step]) * 1000)
    return path


def fetch_and_save(stage: StageSpec) -> list[str]:
    """The checkpoints that are fetched first. Then the best comes, the first one; rank 0 saves a fifth, and keeps these and the third."""
    kept_in_step = mirror.Mirror(stage)
    kept_in_step.fetch()
    checkpoints = Path(stage.folder) / "checkpoints"
    fetched = [path.name for path in complete_checkpoints(checkpoints)]
    kept_in_step.fetch_checkpoint(1)
    if torch.distributed.get_rank() == 0:
        saved = make_checkpoint(checkpoints, 5)
        artifacts.publish(saved, str(saved), "f", {})
        kept_in_step.add_checkpoint(saved, [checkpoint_path(checkpoints, step) for step in (1, 3, 5)])
    torch.distributed.barrier()
    return fetched
