"""Fine-tuning a tiny video classifier on real files in real gloo workers: it learns, repeats, and goes on where it was stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rbft import artifacts, rows, storage
from rbft.baselines.classifier_spec import ClassifierSpec
from rbft.baselines.classifier_training import train_classifier
from rbft.baselines.video_classifier import load_trained
from rbft.data.samples import TrainingItem, class_weights
from rbft.errors import CheckpointError
from rbft.evaluation.predictions import predictions_from_table
from rbft.models.load import read_card
from rbft.records import Example, Prediction, prediction_schema
from rbft.video.decode import decode
from tests.baselines.classifiers import Kind, make_tiny_classifier
from tests.baselines.trainings import MakeSpec, predict_after_the_first, train_and_predict, train_each, train_to_error, train_until
from tests.s3 import FlakyS3
from tests.samples import TASK, write_video
from tests.training.stages import in_store
from tests.training.workers import run_workers

NUM_VIDEOS = 7
"""So that the last batch of an epoch has a filler."""


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingItem]:
    folder = tmp_path_factory.mktemp("videos")
    examples = [
        Example(f"v{n}", str(write_video(folder / f"{n}.mp4", seconds=2, seed=n)), TASK.labels[n % 2], sha256=f"{n:064x}")
        for n in range(NUM_VIDEOS)
    ]
    return [TrainingItem(example, TASK.question_messages(), str(example.label)) for example in examples]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_classifier(tmp_path_factory.mktemp("model"), "videomae")


@pytest.fixture(scope="module")
def make_spec(model: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeSpec:
    return MakeSpec(model, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def whole(make_spec: MakeSpec, items: list[TrainingItem]) -> ClassifierSpec:
    """A training that nobody stopped, in one worker: two epochs of two steps."""
    spec = make_spec("whole")
    run_workers(train_classifier, 1, spec, items)
    return spec


def weights(spec: ClassifierSpec) -> bytes:
    return (Path(spec.folder) / "final" / "model.safetensors").read_bytes()


def log(spec: ClassifierSpec) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(spec.folder) / "log.jsonl").read_text().splitlines()]


def predictions(folder: Path) -> dict[str, Prediction]:
    found = predictions_from_table(rows.read_parts(str(folder), prediction_schema()), str(folder))
    return {prediction.id: prediction for prediction in found}


def test_a_trained_model_is_a_whole_artifact_with_its_task_and_log(whole: ClassifierSpec) -> None:
    final = Path(whole.folder) / "final"
    artifacts.verify(final)
    task, spec, lineage = read_card(final)
    assert task == TASK and spec.max_frames == 4 and lineage["fingerprint"] == "f"
    lines = log(whole)
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and lines[-1]["num_steps"] == 4
    assert lines[0]["learning_rate"] == pytest.approx(1e-3) and lines[-1]["learning_rate"] < lines[1]["learning_rate"]
    assert len(list(Path(whole.folder).glob("checkpoints/*/COMPLETE.json"))) == whole.training.keep_checkpoints


def test_the_same_seed_gives_the_same_weights(make_spec: MakeSpec, whole: ClassifierSpec, items: list[TrainingItem]) -> None:
    """Also where clips go through the model two at a time, but for rounding."""
    again, pairs = make_spec("again"), make_spec("pairs", micro_batch_size=2)
    run_workers(train_each, 1, [(again, items), (pairs, items)])
    assert weights(again) == weights(whole)
    assert [line["loss"] for line in log(pairs)] == pytest.approx([line["loss"] for line in log(whole)], abs=1e-4)


def test_two_workers_do_what_one_does_and_go_on_where_they_were_stopped(
    make_spec: MakeSpec, whole: ClassifierSpec, items: list[TrainingItem]
) -> None:
    """With fillers in the last batches, which must not weigh. Stopped by one worker, and started again by both; then by one alone."""
    unbroken, broken = make_spec("two", 2), make_spec("two-broken", 2)
    run_workers(train_classifier, 2, unbroken, items)
    assert [line["loss"] for line in log(unbroken)] == pytest.approx([line["loss"] for line in log(whole)], abs=1e-4)
    messages = run_workers(train_until, 2, broken, items, 2)
    assert all("stopped after step 2 of 4 (a test)" in message for message in messages)
    run_workers(train_classifier, 2, broken, items)
    assert weights(broken) == weights(unbroken)


def test_a_training_that_is_stopped_ends_with_the_weights_of_one_that_is_not(
    make_spec: MakeSpec, whole: ClassifierSpec, items: list[TrainingItem]
) -> None:
    spec = make_spec("stopped")
    (message,) = run_workers(train_until, 1, spec, items, 3)
    assert "stopped after step 3 of 4" in message and not (Path(spec.folder) / "final").exists()
    run_workers(train_classifier, 1, spec, items)
    assert weights(spec) == weights(whole) and [line["step"] for line in log(spec)] == [1, 2, 3, 4]


def test_in_a_store_it_goes_on_on_another_node_and_is_asked_from_there(
    make_spec: MakeSpec, whole: ClassifierSpec, items: list[TrainingItem], tmp_path: Path, s3: FlakyS3
) -> None:
    store, environment = "s3://runs/doors/train/tiny/classify/ffff", s3.environment | {"RBFT_MODEL_CACHE": str(tmp_path / "models")}
    spec = replace(make_spec("node-a"), store=store)
    (message,) = run_workers(in_store, 1, environment, train_until, spec, items, 3)
    assert f"stopped after step 3 of 4 (a test); saved {store}/checkpoints/step-00000003" in message
    spec = replace(make_spec("node-b"), store=store)
    run_workers(in_store, 1, environment, train_and_predict, spec, items, str(tmp_path / "rows"))
    assert storage.read_bytes(f"{store}/final/model.safetensors") == (Path(whole.folder) / "final/model.safetensors").read_bytes()
    assert set(predictions(tmp_path / "rows")) == {item.example.id for item in items} and not Path(spec.folder).exists()


@pytest.mark.parametrize("kind", ["uniformerv2", "internvideo2"])
def test_a_training_by_a_published_recipe_goes_on_bit_for_bit_and_sees_every_view(
    kind: Kind, items: list[TrainingItem], tmp_path: Path
) -> None:
    """With statistics of batches, blends and draws of every kind."""
    own: dict[str, Any] = {"recipe": f"{kind}-b{16 if kind == 'uniformerv2' else 14}", "micro_batch_size": 2, "epochs": 2}
    make_spec = MakeSpec(make_tiny_classifier(tmp_path / "model", kind), tmp_path)
    unbroken, broken = make_spec("unbroken", **own), make_spec("broken", **own)
    run_workers(train_and_predict, 1, unbroken, items, str(tmp_path / "rows"))
    (message,) = run_workers(train_until, 1, broken, items, 2)
    assert "stopped after step 2 of 4" in message
    run_workers(train_classifier, 1, broken, items)
    assert weights(broken) == weights(unbroken)
    classifier = load_trained(Path(unbroken.folder) / "final")
    assert classifier.encoder.form.num_clips == 4
    found = predictions(tmp_path / "rows")
    first = items[0].example
    clip = decode(first.uri, classifier.encoder.video_spec())
    views = classifier.encoder.views(clip, num_crops=3)
    assert len(views) == 12
    with torch.inference_mode():
        expected = classifier.model.eval()(views).logits.softmax(-1).mean(0)
    assert list(found[first.id].probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_checkpoint_whose_bytes_have_changed_is_refused(make_spec: MakeSpec, items: list[TrainingItem]) -> None:
    spec = make_spec("altered")
    run_workers(train_until, 1, spec, items, 1)
    (path,) = Path(spec.folder).glob("checkpoints/step-*/optimiser.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (message,) = run_workers(train_to_error, 1, spec, items)
    assert message.startswith("checkpoint: ") and str(path) in message and CheckpointError.code == "checkpoint"


def test_it_learns_to_tell_its_clips_apart(make_spec: MakeSpec, items: list[TrainingItem], tmp_path: Path) -> None:
    spec = make_spec("learns", epochs=25, micro_batch_size=4, learning_rate=3e-3, random_crop=False, random_flip=False)
    run_workers(train_and_predict, 1, spec, items, str(tmp_path / "rows"))
    lines = log(spec)
    assert lines[-1]["loss"] < 0.2 < lines[0]["loss"]
    found = predictions(tmp_path / "rows")
    assert all(found[item.example.id].predicted == item.answer for item in items)
    for prediction in found.values():
        assert sum(prediction.probabilities.values()) == pytest.approx(1) and prediction.generated is None
        assert list(prediction.probabilities) == list(TASK.labels)
        assert torch.tensor(list(prediction.logprobs.values())).exp().tolist() == pytest.approx(list(prediction.probabilities.values()))


def test_a_bad_video_is_left_out_of_training_and_an_error_row_of_predictions(
    make_spec: MakeSpec, items: list[TrainingItem], tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    bad = TrainingItem(Example("bad", str(tmp_path / "bad.mp4"), "normal"), (), "normal")
    run_workers(train_and_predict, 1, make_spec("bad", epochs=1), [bad, *items], str(tmp_path / "rows"))
    found = predictions(tmp_path / "rows")
    assert len(found) == 1 + NUM_VIDEOS
    assert found["bad"].predicted is None and str(found["bad"].error_code).startswith("video")
    assert all(prediction.error_code is None for id_, prediction in found.items() if id_ != "bad")
    (message,) = run_workers(train_to_error, 1, make_spec("too-bad", epochs=1, max_bad_fraction=0.01), [bad, *items])
    assert "1 of 8 videos could not be used, more than max_bad_fraction: bad (video" in message


def test_a_loss_that_is_no_number_stops_it_with_the_videos(make_spec: MakeSpec, items: list[TrainingItem]) -> None:
    (message,) = run_workers(train_to_error, 1, make_spec("diverges", learning_rate=1e30, warmup_ratio=0), items)
    assert "is NaN or infinite at step 2, with these videos in the batch (rank 0: v" in message


def test_weights_of_classes_weigh_in_the_loss(make_spec: MakeSpec, items: list[TrainingItem]) -> None:
    spec, weighted = make_spec("w-1", epochs=1), make_spec("w-2", epochs=1)
    run_workers(train_each, 1, [(spec, items), (weighted, class_weights(items))])
    assert log(spec)[0]["loss"] != log(weighted)[0]["loss"]


def test_bfloat16_trains_weights_that_are_stored_in_float32(make_spec: MakeSpec, items: list[TrainingItem]) -> None:
    spec = make_spec("bf16", epochs=1, precision="bf16", gradient_checkpointing=True)
    run_workers(train_classifier, 1, spec, items)
    assert {parameter.dtype for parameter in load_trained(Path(spec.folder) / "final").model.parameters()} == {torch.float32}


def test_a_worker_that_has_predicted_its_share_does_not_wait_for_the_others(
    whole: ClassifierSpec, items: list[TrainingItem], tmp_path: Path
) -> None:
    folder, stop_file = tmp_path / "rows", tmp_path / "stop"
    assert run_workers(predict_after_the_first, 2, whole, items, str(folder), stop_file) == [None, None]
    assert set(predictions(folder)) == {item.example.id for item in items}


def test_a_worker_that_is_asked_to_stop_leaves_its_predictions_to_the_next(
    whole: ClassifierSpec, items: list[TrainingItem], tmp_path: Path
) -> None:
    folder, stop_file = tmp_path / "rows", tmp_path / "stop"
    stop_file.write_text("a test")
    said = run_workers(predict_after_the_first, 2, whole, items, str(folder), stop_file)
    assert all("predictions: stopped (a test)" in why for why in said) and not folder.exists()
