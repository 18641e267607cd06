"""Numbers in print: the terminal's table, the summary, the sentence."""

from __future__ import annotations

import json

import pytest

from rbft.evaluation.compare import Comparison, Difference
from rbft.evaluation.metrics import metrics_from_confusion
from rbft.evaluation.probabilities import evaluate_probabilities
from rbft.evaluation.tables import (
    difference_sentence,
    duration,
    interval,
    majority_metrics,
    p_text,
    percent,
    points,
    signed,
    summary_json,
    table_text,
)
from rbft.records import Prediction

LABELS = ("normal", "abnormal")
RBFT = metrics_from_confusion([[54, 14, 0], [20, 108, 0]], LABELS)
UNSURE = metrics_from_confusion([[40, 8, 20], [20, 100, 8]], LABELS)


def test_the_table_is_aligned_and_every_number_has_its_interval() -> None:
    lines = table_text({"zero-shot": UNSURE, "rb-ft": RBFT}, {"rb-ft": UNSURE}).splitlines()
    assert [line.split("  ")[0] or line.split("  ")[1] for line in lines] == [
        "by label likelihood", "Zero-shot", "RB-FT", "by generated text", "RB-FT", "baseline", "always 'abnormal'",
    ]  # fmt: skip
    assert "82.65 % [" in lines[2] and "81.89 % [" in lines[2] and lines[2].endswith("100.00 %")
    assert lines[1].endswith("85.71 %")
    assert len({line.index("%") for line in lines if "%" in line}) == 1
    assert "65.31 %" in lines[-1] and "50.00 %" in lines[-1]


def test_the_table_has_auroc_and_ece_where_there_are_probabilities_and_every_baseline() -> None:
    rows = [
        Prediction(str(i), LABELS[i % 2], LABELS[i % 2], {"normal": 0.9 - 0.8 * (i % 2), "abnormal": 0.1 + 0.8 * (i % 2)}) for i in range(8)
    ]
    found = evaluate_probabilities(rows, LABELS)
    text = table_text({"zero-shot": UNSURE, "rb-ft": RBFT}, probabilities={"rb-ft": found}, baselines={"one": RBFT, "other": UNSURE})
    lines = text.splitlines()
    assert lines[0].split()[-3:] == ["answered", "AUROC", "ECE"]
    assert lines[2].split()[-2:] == ["1.000", "0.100"] and lines[1].endswith("85.71 %")
    assert [line.split()[0] for line in lines[3:]] == ["baseline", "one", "other"]
    summary = summary_json({"zero-shot": UNSURE, "rb-ft": RBFT}, {"rb-ft": found})
    assert (summary["rb-ft"]["auroc"], summary["rb-ft"]["ece"]) == (1.0, pytest.approx(0.1)) and "auroc" not in summary["zero-shot"]


def test_plain_differences_and_p_values_are_printed_without_false_precision() -> None:
    assert (signed(0.03104), signed(-0.5), signed(-0.00001)) == ("+0.0310", "−0.5000", "0.0000")
    assert (p_text(0.0004), p_text(0.032), p_text(1.0)) == ("< 0.001", "0.032", "1.000")


def test_always_answering_the_majority_has_one_over_k_as_balanced_accuracy() -> None:
    majority = majority_metrics(RBFT)
    assert (majority.accuracy, majority.balanced_accuracy) == (RBFT.majority_accuracy, 0.5)


def test_the_summary_holds_what_a_reader_of_summary_json_expects() -> None:
    summary = json.loads(json.dumps(summary_json({"rb-ft": RBFT})))
    assert list(summary["rb-ft"]) == ["accuracy", "macro_f1", "balanced_accuracy", "ci95"]
    assert summary["rb-ft"]["accuracy"] == RBFT.accuracy
    assert summary["rb-ft"]["ci95"] == list(RBFT.ci95["accuracy"])


@pytest.mark.parametrize(
    ("value", "ends", "sentence"),
    [
        (0.0313, (-0.0102, 0.0724), "+3.13 points balanced accuracy, 95 % interval −1.02 to 7.24: not distinguishable from zero"),
        (0.0313, (0.0041, 0.0724), "+3.13 points balanced accuracy, 95 % interval 0.41 to 7.24: above zero"),
        (-0.0313, (-0.05, -0.01), "−3.13 points balanced accuracy, 95 % interval −5.00 to −1.00: below zero"),
        (0.0, (0.0, 0.0), "0.00 points balanced accuracy, 95 % interval 0.00 to 0.00: not distinguishable from zero"),
    ],
)
def test_the_sentence_claims_no_more_than_the_interval(value: float, ends: tuple[float, float], sentence: str) -> None:
    differences = {"balanced_accuracy": Difference(value=value, ci95=ends)}
    comparison = Comparison(
        system="rb-ft",
        baseline="direct-sft-2",
        modes=("likelihood", "likelihood"),
        num_clips=512,
        differences=differences,
        mcnemar_p=1.0,
        only_system=(),
        only_baseline=(),
        both_wrong=(),
    )
    assert difference_sentence(comparison) == f"RB-FT − Direct-SFT (2 epochs): {sentence}"


def test_numbers_are_printed_to_two_decimals_and_zero_has_no_sign() -> None:
    assert (percent(0.826530), interval((0.7653, 0.8776))) == ("82.65 %", "[76.53, 87.76]")
    assert (points(-0.00001), points(0.00001), points(0.031), points(-0.5)) == ("0.00", "0.00", "+3.10", "−50.00")


@pytest.mark.parametrize(("seconds", "text"), [(9.44, "9.4 s"), (59.96, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")])
def test_a_duration_is_written_in_the_units_a_reader_thinks_in(seconds: float, text: str) -> None:
    assert duration(seconds) == text
