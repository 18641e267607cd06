"""UniFormerV2 and InternVideo2 from random weights, at toy size, as systems of a run on the miniature: they learn, go on after a kill, and
stand in the paper's table.

What they are asked is where a clip is filmed, one of five places: it can be seen in any frame, so that a hundred clips teach it to a model
that has seen nothing before. (Normal or abnormal follows from subject and motion, which takes thousands.)
"""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from miniature.world import SCENES, sample_world
from miniature.write import write_world
from rbft.baselines.video_classifier import load_trained
from rbft.data.manifest import read_manifest, write_manifest
from rbft.evaluation.metrics import evaluate_predictions
from rbft.evaluation.predictions import predictions_from_table
from rbft.evaluation.reproduction import TABLES, make_table
from rbft.models.video.convert import processor_settings
from rbft.models.video.internvideo2 import InternVideo2Config, InternVideo2ForVideoClassification
from rbft.models.video.uniformerv2 import UniFormerV2Config, UniFormerV2ForVideoClassification
from tests.integration.conftest import Jobs, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SYSTEMS = ("UniFormerV2", "InternVideo2")
"""Named as in the paper's Tables 1 and 2."""
NUM_TRAIN, NUM_TEST = 96, 40
_SIZES = {"image_size": 56, "patch_size": 14, "num_frames": 4, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3}


def random_model(folder: Path, name: str) -> Path:
    torch.manual_seed(0)
    if name == "UniFormerV2":
        local = {"has_local_blocks": True, "local_size": 32, "global_layers": [1, 2], "global_dropout": 0.0, "classifier_dropout": 0.0}
        model: torch.nn.Module = UniFormerV2ForVideoClassification(UniFormerV2Config(**_SIZES, **local, intermediate_size=96))
    else:
        pooling = {"pooling_size": 48, "num_pooling_heads": 3, "layer_scale": 0.1}
        model = InternVideo2ForVideoClassification(InternVideo2Config(**_SIZES, **pooling, intermediate_size=96))
    model.save_pretrained(folder)  # type: ignore[operator]
    (folder / "video_preprocessor_config.json").write_text(json.dumps(processor_settings(model.config)))  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("places")
    world = sample_world(seed=78, sizes={"train": NUM_TRAIN, "test": NUM_TEST})
    places = {clip.plan.id: clip.plan.slots.scene for clip in world}
    manifest = write_world(folder, world)
    write_manifest([replace(example, label=places[example.id]) for example in read_manifest(manifest)], folder / "places.parquet")
    own = {"epochs": 12, "learning_rate": 2e-3, "precision": "fp32", "global_batch_size": 16, "micro_batch_size": 8}
    # Everything of a published recipe that a run can do without a thousand GPU hours, but gentler.
    own |= {"num_clips": 2, "num_crops": 3, "layer_decay": 0.9, "label_smoothing": 0.05, "random_erasing": 0.1, "class_balance": "loss"}
    each: dict[str, dict[str, object]] = {"UniFormerV2": {}, "InternVideo2": {"mixup": 0.1, "cutmix": 0.1, "drop_path_rate": 0.05}}
    classifiers = [{"name": name, "path": str(random_model(folder / name, name)), **own, **each[name]} for name in SYSTEMS]
    return (
        f"data.manifest={folder / 'places.parquet'}",
        f"task.labels={json.dumps(SCENES)}",
        "task.concern_labels=[]",
        f"task.question=Is this a {', '.join(SCENES)}? Answer with one word.",
        "evaluation.systems=[]",
        "training.checkpoint_every_steps=10",
        f"evaluation.video_classifiers={json.dumps(classifiers)}",
    )


def only(folder: Path) -> Path:
    (found,) = [path for path in folder.iterdir() if path.is_dir()]
    return found


def table(run: Path, name: str) -> Path:
    return only(run / f"evaluation/{name}") / "predictions-00000.parquet"


def weights(run: Path, name: str) -> bytes:
    return (only(run / f"train/{name}/classify") / "final" / "model.safetensors").read_bytes()


def test_both_learn_through_the_real_job_and_go_on_after_a_kill(jobs: Jobs, settings: tuple[str, ...]) -> None:
    jobs.run("pipeline", "places", *settings)
    run = jobs.run_dir("places")
    summary = json.loads((run / "summary.json").read_text())["systems"]
    assert set(summary) == set(SYSTEMS)
    report = (run / "report.html").read_text()
    found = {}
    for name in SYSTEMS:
        predictions = predictions_from_table(pq.read_table(table(run, name)), name)
        assert len(predictions) == NUM_TEST and all(prediction.error_code is None for prediction in predictions)
        metrics = found[name] = evaluate_predictions(predictions, SCENES, "likelihood", seed=0)
        # The whole interval is above one answer for all, which gets a fifth.
        assert metrics.ci95["balanced_accuracy"][0] > 1 / len(SCENES), (name, metrics.balanced_accuracy)
        assert name in report
    rows = [row.name for row in make_table(TABLES[1], "places", SCENES, {}, found).rows]
    assert rows[:4] == ["UniFormerV2", "paper: UniFormerV2", "InternVideo2", "paper: InternVideo2"]
    model = load_trained(only(run / "train/UniFormerV2/classify") / "final").model
    assert model.config.id2label == dict(enumerate(SCENES))

    killed = jobs.run_dir("places-killed")
    job = jobs.start("pipeline", "places-killed", *settings)
    wait_for(lambda: bool(list(killed.glob("train/InternVideo2/classify/*/checkpoints/step-*/COMPLETE.json"))), job, timeout_s=900)
    job.send_signal(signal.SIGKILL)
    job.wait()
    jobs.run("pipeline", "places-killed", *settings)
    for name in SYSTEMS:
        assert weights(killed, name) == weights(run, name)
        assert table(killed, name).read_bytes() == table(run, name).read_bytes()
