"""The experiment's protocol and what is read out of its results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from miniature.analysis import BASE, Truth, World, disagreements, label_curve, slot_scores
from miniature.base import load_task
from miniature.evaluate import DEVELOPMENT_WORLD
from miniature.protocol import PROTOCOLS, VISION_SHARE, Learning, gates_file, load_protocol, open_run
from miniature.world import Slots
from rbft.errors import ConfigError
from rbft.evaluation.study import make_study
from rbft.records import Prediction, Rationale

DOG = Slots("dog", "red", "up", "porch")
CAR = Slots("car", "blue", "right", "garden")


NAMES = sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))


def test_no_reported_world_is_reported_twice_or_one_that_anything_was_tuned_on() -> None:
    protocols = [load_protocol(name) for name in NAMES]
    reported = [seed for protocol in protocols for seed in (*protocol.worlds, protocol.title_world)]
    assert len(set(reported)) == len(reported) == 6 * len(NAMES)
    development = {DEVELOPMENT_WORLD, *(seed for protocol in protocols for seed in protocol.development.worlds)}
    assert all(DEVELOPMENT_WORLD <= seed < 1000 for seed in development) and min(reported) > max(development)


def test_a_protocol_that_is_not_there_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"evidence-7\.yaml: no protocol .*there are evidence-1"):
        load_protocol("evidence-7")


@pytest.mark.parametrize("name", NAMES)
def test_every_arm_had_the_same_trials_and_learns_at_a_rate_that_was_tried(name: str) -> None:
    protocol = load_protocol(name)
    assert set(protocol.learning.rates) == set(protocol.systems) - {"zero-shot"}
    assert set(protocol.learning.rates.values()) <= set(protocol.development.rates) and len(protocol.development.rates) == 3


@pytest.mark.parametrize("name", NAMES)
def test_what_the_gates_found_is_what_was_frozen(name: str) -> None:
    """The gates' figures are of this protocol: its rates are the best that were tried, and every gate held before the freeze."""
    protocol, found = load_protocol(name), json.loads(gates_file(name).read_text())
    assert protocol.frozen
    assert (name, found["protocol"], found["worlds"]) == (protocol.name, name, list(protocol.development.worlds))
    assert protocol.learning.rates == found["best_rates"]
    assert all(gate["holds"] for gate in found["gates"].values())


def test_a_run_of_the_protocol_is_the_demos_with_other_data_systems_and_rates(tmp_path: Path) -> None:
    sizes, learning = {"train": 4, "validation": 2, "test": 2}, Learning(rates={"rb-ft": 1e-3, "direct-sft-2": 2e-3}, rationale_times=4)
    run = open_run(tmp_path, "w", 901, sizes, systems=["rb-ft", "rb-ft-unlabelled@2", "direct-sft-2"], learning=learning)
    training = run.config.training
    assert [len(run.split(split)) for split in sizes] == list(sizes.values())
    for system, rate in (("rb-ft", 1e-3), ("rb-ft-unlabelled@2", 1e-3), ("direct-sft-2", 2e-3)):
        for optimiser, peak in ((training.optimiser(system, "rationale"), 4 * rate), (training.optimiser(system, "classify"), rate)):
            assert (optimiser.lr_language, optimiser.lr_vision) == pytest.approx((peak, VISION_SHARE * peak))
            assert (optimiser.weight_decay, optimiser.max_grad_norm) == (0.1, 1.0)
    assert (training.global_batch_size, training.rationale_epochs, training.classify_epochs) == (16, 1, 1)
    clips = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4"))
    open_run(tmp_path, "again", 901, sizes, systems=["rb-ft"], learning=learning)
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")) == clips


def say(id_: str, subject: str, finish_reason: str = "stop") -> Rationale:
    text = f"Subjects: a {subject}.\nAttributes: red.\nActions: it climbs up.\nScenes: the porch."
    return Rationale(id_, 0, text, finish_reason=finish_reason)


def world(*, baseline: list[str], system: list[str]) -> World:
    """Four clips, two a kind, labels normal and abnormal by kind."""
    truth = {
        "a": Truth(DOG, "normal", 0.1),
        "b": Truth(DOG, "normal", 0.9),
        "c": Truth(CAR, "abnormal", 0.2),
        "d": Truth(CAR, "abnormal", 1.0),
    }
    written = {
        BASE: [say("a", "dog"), say("b", "cat", "length"), say("c", "car"), say("d", "dog")],
        "rb-ft": [say("a", "dog"), say("b", "dog"), say("c", "dog"), say("d", "dog")],
    }
    predictions = {
        name: [Prediction(id_, truth[id_].label, answer) for id_, answer in zip(truth, answers, strict=True)]
        for name, answers in (("direct-sft-2", baseline), ("rb-ft", system))
    }
    return World(1, truth, predictions, written)


def test_disagreements_count_who_alone_is_right_by_class_severity_and_slot() -> None:
    n, a = "normal", "abnormal"
    found = disagreements([world(baseline=[n, a, n, a], system=[n, n, a, n])], "rb-ft", "direct-sft-2")
    rows = {(row.aspect, row.value): (row.num_clips, row.only_system, row.only_baseline) for row in found}
    assert rows["class", "normal"] == (2, 1, 0) and rows["class", "abnormal"] == (2, 1, 1)
    assert rows["severity", "0 to 0.25"] == (2, 1, 0) and rows["severity", "0.75 to 1"] == (2, 1, 1)
    assert rows["subject", "dog"] == (2, 1, 0) and rows["action", "right"] == (2, 1, 1)
    assert sum(row.num_clips for row in found if row.aspect == "combination") == 4


def test_slot_scores_count_right_slots_and_what_passes_the_gates() -> None:
    n = "normal"
    scores = slot_scores([world(baseline=[n] * 4, system=[n] * 4)], BASE, load_task())
    assert scores.right["subject"] == 0.5  # a and c
    assert scores.right["attribute"] == 0.5 and scores.right["action"] == 0.5
    assert (scores.passed["not_cut_off"], scores.passed["all"], scores.num_clips) == (0.75, 0.75, 4)


def test_slot_scores_tell_what_stage_1_mended_and_broke_and_which_errors_are_habits() -> None:
    one = world(baseline=["normal"] * 4, system=["normal"] * 4)
    before, after = (slot_scores([one], writer, load_task()) for writer in (BASE, "rb-ft"))
    assert (before.mended, before.broken) == (0, 0)
    assert (after.mended, after.broken) == (1 / 16, 1 / 16)  # of 4 clips x 4 slots: b's subject and c's
    assert after.right["subject"] == 0.5 and after.usual_error["subject"] == ("dog", 1.0)
    assert before.usual_error["subject"] in {("nothing", 0.5), ("dog", 0.5)}  # a cat is no subject of this world
    assert after.by_severity == {"0 to 0.25": 0.5, "0.75 to 1": 0.5}  # a 4/4 and c 0/4, b 4/4 and d 0/4


def test_the_label_curve_ends_at_the_systems_with_all_labels() -> None:
    n, a = "normal", "abnormal"
    some = world(baseline=[n, n, a, a], system=[n, n, n, n]).predictions
    study = make_study([{"rb-ft": some["rb-ft"], "rb-ft@2": some["direct-sft-2"], "rb-ft-unlabelled@2": some["rb-ft"]}], [n, a])
    curves = label_curve(study, ["rb-ft", "rb-ft-unlabelled"], [2], 4, "accuracy")
    assert [(count, estimate.value) for count, estimate in curves["rb-ft"].items()] == [(2, 1.0), (4, 0.5)]
    assert [(count, estimate.value) for count, estimate in curves["rb-ft-unlabelled"].items()] == [(2, 0.5), (4, 0.5)]
