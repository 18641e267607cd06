"""Validation on two ranks: the scores of plain PyTorch; the best kept, the end early; training as without it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rbft import artifacts
from rbft.config import ValidationConfig
from rbft.data.samples import TrainingItem
from rbft.models.chat import ChatAdapter
from rbft.models.load import load_model
from rbft.records import Example
from rbft.training.checkpoints import complete_checkpoints
from rbft.training.deepspeed_engine import build_engine
from rbft.training.loop import run_stage
from rbft.training.loss import SupervisedLoss
from rbft.training.stage import PROBE_FILE, StageSpec
from rbft.training.validation import Validation, mean_loss, validate, validation_steps
from rbft.video.pool import DecodePool
from tests.samples import TASK
from tests.training.stages import OPTIMISER, VIDEO, log_lines, losses, make_items, make_stage, make_training, run_stages
from tests.training.workers import run_workers


def label_items(videos: list[Path], *labels: str) -> tuple[TrainingItem, ...]:
    return tuple(
        TrainingItem(Example(f"h{i}", str(video), label), TASK.question_messages(), label)
        for i, (video, label) in enumerate(zip(videos, labels, strict=False))
    )


def trained_on(stage: StageSpec, **validation: Any) -> StageSpec:
    return replace(stage, training=stage.training.model_copy(update={"validation": ValidationConfig(**validation)}))


@pytest.fixture(scope="module")
def held_out(videos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingItem, ...]:
    """Five videos, so that one of two ranks gets a filler, one of which is not there."""
    items = label_items(videos, "normal", "abnormal", "normal", "abnormal", "abnormal")
    gone = replace(items[1].example, uri=str(tmp_path_factory.mktemp("gone") / "gone.mp4"))
    return (items[0], replace(items[1], example=gone), *items[2:])


def score(spec: StageSpec, zero_stages: tuple[int, ...]) -> dict[int, tuple[Validation, float, bool]]:
    """ZeRO stage -> the validation, the mean loss of the probe, and whether the model learns again afterwards."""
    found = {}
    for zero_stage in zero_stages:
        adapter = ChatAdapter(spec.model.path, VIDEO.spec())
        training = make_training(2, 2, zero_stage=zero_stage)
        engine = build_engine(load_model(spec.model.path, "float32"), training, OPTIMISER, adapter.patches)
        validation = validate(engine, adapter, spec, 3)
        found[zero_stage] = (validation, mean_loss(engine, adapter, spec, spec.probe), bool(engine.module.training))
        engine.destroy()
    return found


def test_the_scores_are_those_of_plain_pytorch_on_every_rank_with_and_without_partitions(
    tiny_model: Path, videos: list[Path], held_out: tuple[TrainingItem, ...], tmp_path: Path
) -> None:
    probe = tuple(make_items(videos)[:3])
    spec = make_stage(tiny_model, tmp_path, make_training(2, 2), validation=held_out, probe=probe)
    adapter, model = ChatAdapter(tiny_model, VIDEO.spec()), SupervisedLoss(load_model(tiny_model, "float32").eval())
    with DecodePool(1) as pool, torch.no_grad():

        def loss(item: TrainingItem, answer: str) -> float:
            sample = adapter.encode(pool.decode(item.example.uri, adapter.spec), item.messages, answer)
            return float(model(**adapter.collate([sample])))

        usable = [item for item in held_out if Path(item.example.uri).exists()]
        likelihoods = [{label: -loss(item, label) for label in TASK.labels} for item in usable]
        probed = sum(loss(item, item.answer) for item in probe) / sum(len(adapter.answer_ids(item.answer)) for item in probe)
    right = [max(each, key=each.__getitem__) == item.answer for item, each in zip(usable, likelihoods, strict=True)]
    nats = -sum(each[item.answer] for item, each in zip(usable, likelihoods, strict=True))
    num_tokens = sum(len(adapter.answer_ids(item.answer)) for item in usable)

    ranks = run_workers(score, 2, spec, (2, 3))
    assert ranks[0] == ranks[1]
    for validation, probe_loss, learns_again in ranks[0].values():
        assert validation.step == 3 and learns_again
        assert validation.scores["accuracy"] == pytest.approx(sum(right) / 5), "the one that is not there counts as wrong"
        assert validation.scores["coverage"] == pytest.approx(4 / 5)
        assert validation.scores["loss"] == pytest.approx(nats / num_tokens, abs=1e-4)
        assert probe_loss == pytest.approx(probed, abs=1e-4)


@pytest.fixture(scope="module")
def stages(tiny_model: Path, videos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageSpec]:
    """Stages of twelve steps that ran in one job. They learn to say "normal", and are validated on videos called "quick", a word without a
    letter of it: what the random model finds likelier at first, and no longer once they have learned."""
    folder = tmp_path_factory.mktemp("validated")
    items = list(label_items(videos, *["normal"] * 4))
    against, agreeing = label_items(videos, *["quick"] * 3), label_items(videos[3:], *["normal"] * 2)
    training, task = make_training(2, 2, checkpoint_every_steps=3), TASK.model_copy(update={"labels": ("normal", "quick")})

    def stage(name: str, **others: Any) -> StageSpec:
        return make_stage(tiny_model, folder / name, training, epochs=12, task=task, **others)

    plain = stage("plain")
    found = {
        "plain": plain,
        "to the end": trained_on(stage("to the end", validation=agreeing, probe=against[:2]), every_epochs=2.0, metric="loss"),
        "held out": stage("held out", held_out=against[:2]),
        "ended early": trained_on(stage("ended early", validation=against), every_steps=1, patience=2),
    }
    run_workers(run_stages, 2, [(spec, items) for spec in found.values()])
    return found


def validated(spec: StageSpec) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((Path(spec.folder) / "validation.json").read_text())
    return found


def final_bytes(spec: StageSpec) -> bytes:
    return (Path(spec.folder) / "final" / "model.safetensors").read_bytes()


def test_training_is_the_same_with_and_without_validation(stages: dict[str, StageSpec]) -> None:
    assert losses(stages["to the end"]) == losses(stages["plain"])
    assert losses(stages["ended early"]) == losses(stages["plain"])[: len(losses(stages["ended early"]))]
    # The last validation was the best here, so that final is the last step's.
    assert final_bytes(stages["to the end"]) == final_bytes(stages["plain"])
    assert not (Path(stages["plain"].folder) / "validation.json").exists()


def test_it_is_due_when_it_is_asked_for_and_its_scores_are_in_the_log(stages: dict[str, StageSpec]) -> None:
    found = validated(stages["to the end"])
    assert [each["step"] for each in found] == [2, 4, 6, 8, 10, 12]
    told = {line["step"]: line for line in log_lines(stages["to the end"]) if "validation_macro_f1" in line}
    assert list(told) == [2, 4, 6, 8, 10, 12]
    assert all(told[each["step"]]["validation_loss"] == each["scores"]["loss"] for each in found)


def test_a_stage_that_gets_no_better_ends_and_its_final_is_the_best(stages: dict[str, StageSpec], tiny_model: Path) -> None:
    spec = stages["ended early"]
    found = validated(spec)
    best = max(found, key=lambda each: (each["scores"]["macro_f1"], -each["scores"]["loss"]))["step"]
    assert len(found) == best + 2 < 12, "two validations in a row that were no better"
    assert found[-1]["scores"]["macro_f1"] < found[best - 1]["scores"]["macro_f1"]
    assert log_lines(spec)[-1]["ended_early"] is True and "ended_early" not in log_lines(stages["to the end"])[-1]
    kept = [path.name for path in complete_checkpoints(Path(spec.folder) / "checkpoints")]
    assert f"step-{best:08d}" in kept, "the best is kept although it is old"
    state = torch.load(f"{spec.folder}/checkpoints/step-{best:08d}/state/mp_rank_00_model_states.pt", weights_only=False)["module"]
    final = load_model(f"{spec.folder}/final", "float32")
    for name, weight in final.named_parameters():
        assert torch.equal(weight, state[f"model.{name}"]), name
    assert any(not torch.equal(weight, final.get_parameter(name)) for name, weight in load_model(tiny_model, "float32").named_parameters())


def test_a_stage_that_ended_early_and_was_killed_before_final_does_not_learn_on(
    stages: dict[str, StageSpec], videos: list[Path], tmp_path: Path
) -> None:
    ended = stages["ended early"]
    shutil.copytree(ended.folder, tmp_path / "stage", ignore=shutil.ignore_patterns("final"))
    again = replace(ended, folder=str(tmp_path / "stage"))
    run_workers(run_stage, 2, again, list(label_items(videos, *["normal"] * 4)))
    assert artifacts.is_complete(f"{again.folder}/final")
    assert final_bytes(again) == final_bytes(ended)
    assert validated(again) == validated(ended) and losses(again) == losses(ended)


def test_the_probe_is_measured_before_and_after(stages: dict[str, StageSpec]) -> None:
    probe = json.loads((Path(stages["to the end"].folder) / PROBE_FILE).read_text())
    assert probe["num_rationales"] == 2 and 0 < probe["before"] < probe["after"], "it learned the other word"
    assert not (Path(stages["plain"].folder) / PROBE_FILE).exists()


def test_rationales_that_are_held_out_are_measured_after_every_epoch_and_not_learned(stages: dict[str, StageSpec]) -> None:
    lines = log_lines(stages["held out"])
    assert [line["step"] for line in lines if "validation_loss" in line] == list(range(1, 13))  # an epoch has one step
    assert losses(stages["held out"]) == losses(stages["plain"]) and final_bytes(stages["held out"]) == final_bytes(stages["plain"])
    probe = json.loads((Path(stages["to the end"].folder) / PROBE_FILE).read_text())  # of the same videos by the same weights
    assert lines[-1]["validation_loss"] == pytest.approx(probe["after"])
    assert not any("validation_loss" in line for line in log_lines(stages["plain"]))


@given(st.integers(1, 300), st.integers(1, 4), st.floats(0.05, 3.0))
def test_the_last_step_is_always_validated_and_none_beyond_it(steps_an_epoch: int, epochs: int, every_epochs: float) -> None:
    num_steps = steps_an_epoch * epochs
    due = validation_steps(ValidationConfig(every_epochs=every_epochs), num_steps, epochs)
    assert max(due) == num_steps and min(due) >= 1
    assert len(due) <= epochs / every_epochs + 2


def test_every_seven_steps_of_twenty() -> None:
    assert validation_steps(ValidationConfig(every_steps=7), 20, 2) == {7, 14, 20}
    assert validation_steps(ValidationConfig(every_epochs=0.5), 20, 2) == {5, 10, 15, 20}
    assert validation_steps(ValidationConfig(), 20, 2) == frozenset()
