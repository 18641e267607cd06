"""The two tests: against scipy, against counting every case, and under the null hypothesis."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, permutation_test

from rbft.evaluation.compare import compare_predictions
from rbft.evaluation.metrics import METRICS
from rbft.evaluation.significance import mcnemar_exact
from rbft.records import Prediction

LABELS = ("normal", "abnormal")


def _pair(truth: str, first: str, second: str) -> tuple[list[Prediction], list[Prediction]]:
    """Systems from strings of a letter a clip: n, a, or - for no answer."""
    names = {"n": "normal", "a": "abnormal", "-": None}
    return tuple(  # type: ignore[return-value]
        [Prediction(f"{i:03d}", names[label], names[given]) for i, (label, given) in enumerate(zip(truth, answers, strict=True))]
        for answers in (first, second)
    )


@given(first=st.integers(0, 60), second=st.integers(0, 60))
def test_mcnemar_is_twice_the_smaller_tail_of_a_fair_coin(first: int, second: int) -> None:
    p_value = mcnemar_exact(first, second)
    assert p_value == pytest.approx(min(1.0, 2 * binom.cdf(min(first, second), first + second, 0.5)))
    assert p_value == mcnemar_exact(second, first)


def test_mcnemars_p_in_numbers() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(10, 0) == pytest.approx(2 / 1024)
    assert mcnemar_exact(12, 5) == pytest.approx(0.143463)  # R: binom.test(12, 17)


def test_a_comparison_says_which_clips_differ_and_tests_them() -> None:
    ours, theirs = _pair("nnaaa-"[:5] + "n", "nnaa-a", "naan--")
    found = compare_predictions(ours, theirs, LABELS, names=("a", "b"))
    assert found.only_system == ("001", "003")
    assert found.only_baseline == ()
    assert found.both_wrong == ("005",)  # clip 4: neither answers, which is the same answer
    assert found.mcnemar_p == mcnemar_exact(2, 0) == 0.5


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_the_permutation_test_agrees_with_counting_every_swap(data: st.DataObject) -> None:
    truth = "nnnnaaaa"
    first, second = (data.draw(st.text("na-", min_size=8, max_size=8)) for _ in range(2))
    ours, theirs = _pair(truth, first, second)
    found = compare_predictions(ours, theirs, LABELS, names=("a", "b")).differences
    reached: dict[str, list[float]] = {name: [] for name in METRICS}
    for swaps in product([False, True], repeat=8):
        one = [b if swap else a for a, b, swap in zip(ours, theirs, swaps, strict=True)]
        other = [a if swap else b for a, b, swap in zip(ours, theirs, swaps, strict=True)]
        for name, value in zip(METRICS, _differences(one, other), strict=True):
            reached[name].append(value)
    for name in METRICS:
        exact = np.mean([abs(value) >= abs(reached[name][0]) - 1e-9 for value in reached[name]])
        assert found[name].permutation_p == pytest.approx(exact, abs=0.02)  # 10,000 draws: standard error 0.005


def test_the_permutation_test_of_accuracy_agrees_with_scipys() -> None:
    rng = np.random.default_rng(0)
    truth = "".join(rng.choice(list("na"), 150))
    first, second = ("".join(label if rng.random() < share else "na"[label == "n"] for label in truth) for share in (0.8, 0.7))
    ours, theirs = _pair(truth, first, second)
    right = [np.array([row.predicted == row.label for row in rows], dtype=float) for rows in (ours, theirs)]
    theirs_p = permutation_test(
        right,
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        rng=1,
    ).pvalue
    found = compare_predictions(ours, theirs, LABELS, names=("a", "b"))
    assert found.differences["accuracy"].permutation_p == pytest.approx(theirs_p, abs=0.02)
    assert found.mcnemar_p == pytest.approx(theirs_p, abs=0.03)  # the same question, asked exactly


def test_systems_that_do_not_differ_have_p_of_one_and_a_permutation_is_never_impossible() -> None:
    ours, theirs = _pair("nnaa" * 30, "nnaa" * 30, "aann" * 30)
    assert compare_predictions(ours, ours, LABELS, names=("a", "a")).differences["macro_f1"].permutation_p == 1
    found = compare_predictions(ours, theirs, LABELS, names=("a", "b"))
    assert found.differences["accuracy"].permutation_p == pytest.approx(1 / 10_001)
    assert found.mcnemar_p < 1e-30


def test_under_the_null_small_p_values_are_as_rare_as_they_should_be() -> None:
    rng = np.random.default_rng(4)
    p_values = []
    for _ in range(60):
        truth = "".join(rng.choice(list("na"), 60))
        first, second = ("".join(label if rng.random() < 0.7 else "na"[label == "n"] for label in truth) for _ in range(2))
        p_values.append(
            compare_predictions(*_pair(truth, first, second), LABELS, names=("a", "b")).differences["balanced_accuracy"].permutation_p
        )
    assert np.mean(np.array(p_values) <= 0.2) < 0.4  # 12 of 60 expected; 24 would be four standard deviations more


def test_probabilities_are_compared_on_the_same_draws_of_the_clips_that_both_have() -> None:
    rng = np.random.default_rng(8)
    truth = [LABELS[i % 2] for i in range(100)]

    def system(skill: float) -> list[Prediction]:
        shares = 1 / (1 + np.exp(-(skill * np.array([1.0 if label == "abnormal" else -1.0 for label in truth]) + rng.normal(size=100))))
        return [
            Prediction(f"{i:03d}", label, LABELS[int(share > 0.5)], {"normal": 1 - share, "abnormal": share})
            for i, (label, share) in enumerate(zip(truth, shares.tolist(), strict=True))
        ]

    ours, theirs = system(1.5), system(0.5)
    theirs[0] = Prediction("000", "normal", None, error_code="video_decode")
    found = compare_predictions(ours, theirs, LABELS, names=("a", "b")).probability_differences
    assert found["auroc"].value > 0 and found["auroc"].excludes_zero and found["auroc"].permutation_p is None
    assert found["log_loss"].value < 0
    same = compare_predictions(ours, ours, LABELS, names=("a", "a")).probability_differences
    assert all((each.value, each.ci95) == (0, (0, 0)) for each in same.values())


def _differences(one: list[Prediction], other: list[Prediction]) -> list[float]:
    # The clips of one system after a swap keep their order, so ids are distinct.
    first, second = (_scores(rows) for rows in (one, other))
    return [a - b for a, b in zip(first, second, strict=True)]


def _scores(rows: list[Prediction]) -> list[float]:
    from rbft.evaluation.metrics import answer_indices, score_confusions

    confusion = np.zeros((2, 3))
    np.add.at(confusion, answer_indices(rows, LABELS, "likelihood"), 1)
    return [float(value) for value in score_confusions(confusion).values()]
