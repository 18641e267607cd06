"""Temperature and threshold: they find what was put in, they leave rankings alone, and they never see the test split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

from rbft.errors import DataError
from rbft.evaluation.calibration import Calibration, apply_calibration, fit_calibration
from rbft.evaluation.metrics import evaluate_predictions
from rbft.evaluation.probabilities import evaluate_probabilities
from rbft.records import Example, Prediction

LABELS = ("normal", "abnormal", "other")


def _system(
    num_clips: int, temperature: float, seed: int, labels: tuple[str, ...] = LABELS, *, bias: float = 0.0, prefix: str = "v"
) -> list[Prediction]:
    """Answers whose log-likelihoods are `temperature` times too large: the truth is drawn from what they would be without it."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(num_clips):
        logits = 1.5 * rng.normal(size=len(labels))
        truth = int(rng.choice(len(labels), p=softmax(logits)))
        logits[0] += bias
        shares = softmax(temperature * logits)
        logprobs = dict(zip(labels, (temperature * logits - 7).tolist(), strict=True))  # unnormalised, as an engine gives them
        shares_of = dict(zip(labels, shares.tolist(), strict=True))
        rows.append(Prediction(f"{prefix}{i}", labels[truth], labels[int(shares.argmax())], shares_of, logprobs))
    return rows


def _manifest(predictions: list[Prediction], split: str = "validation") -> list[Example]:
    return [Example(row.id, f"{row.id}.mp4", row.label, split) for row in predictions]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(temperature: float) -> None:
    validation = _system(3000, temperature, seed=0)
    fitted = fit_calibration(validation, _manifest(validation), LABELS)
    assert fitted.temperature == pytest.approx(temperature, rel=0.12)
    assert fitted.threshold is None and fitted.num_clips == 3000
    assert fitted.log_loss_after <= fitted.log_loss_before + 1e-9


def test_an_overconfident_system_is_calibrated_on_videos_it_was_not_fitted_on() -> None:
    validation, test = _system(800, 3.0, seed=1), _system(800, 3.0, seed=2, prefix="t")
    after = apply_calibration(test, fit_calibration(validation, _manifest(validation), LABELS))
    uncalibrated, calibrated = evaluate_probabilities(test, LABELS), evaluate_probabilities(after, LABELS)
    assert calibrated.ece < 0.05 < uncalibrated.ece
    assert calibrated.log_loss < uncalibrated.log_loss
    assert [row.predicted for row in after] == [row.predicted for row in test]  # without a threshold no answer changes
    assert evaluate_predictions(after, LABELS) == evaluate_predictions(test, LABELS)


def test_probabilities_alone_calibrate_as_the_log_likelihoods_that_they_were_made_of() -> None:
    validation = _system(500, 2.0, seed=3)
    bare = [replace(row, logprobs={}) for row in validation]
    fits = [fit_calibration(rows, _manifest(rows), LABELS) for rows in (validation, bare)]
    assert fits[0].temperature == pytest.approx(fits[1].temperature, rel=1e-4)


def test_the_threshold_repairs_a_biased_system_and_is_the_best_there_is() -> None:
    labels = LABELS[:2]
    validation, test = _system(600, 1.0, seed=4, labels=labels, bias=2.0), _system(600, 1.0, seed=5, labels=labels, bias=2.0, prefix="t")
    fitted = fit_calibration(validation, _manifest(validation), labels)
    assert fitted.threshold is not None and fitted.threshold < 0.5
    before, after = (evaluate_predictions(rows, labels) for rows in (test, apply_calibration(test, fitted)))
    assert after.balanced_accuracy > before.balanced_accuracy + 0.05
    on_validation = evaluate_predictions(apply_calibration(validation, fitted), labels).balanced_accuracy
    for threshold in np.linspace(0, 1, 41):
        other = apply_calibration(validation, fitted.model_copy(update={"threshold": float(threshold)}))
        assert evaluate_predictions(other, labels).balanced_accuracy <= on_validation + 1e-9


def test_a_threshold_of_a_separable_split_lies_between_the_classes() -> None:
    shares = [0.1, 0.2, 0.8, 0.9]
    rows = [
        Prediction(str(i), LABELS[int(share > 0.5)], LABELS[0], {LABELS[0]: 1 - share, LABELS[1]: share}) for i, share in enumerate(shares)
    ]
    fitted = fit_calibration(rows, _manifest(rows), LABELS[:2])
    assert fitted.threshold == pytest.approx(0.5) and 0.04 < fitted.temperature < 1  # bounded, though the loss would have it 0
    assert [row.predicted for row in apply_calibration(rows, fitted)] == [row.label for row in rows]


@pytest.mark.parametrize("split", ["test", "train"])
def test_predictions_of_another_split_are_refused_even_a_single_one(split: str) -> None:
    validation = _system(20, 1.0, seed=6)
    manifest = [*_manifest(validation)[:-1], *_manifest(validation[-1:], split)]
    with pytest.raises(DataError, match=f"prediction v19: is of the split {split}; calibration is fitted on the validation split only"):
        fit_calibration(validation, manifest, LABELS)


def test_a_video_that_the_manifest_does_not_have_is_refused() -> None:
    validation = _system(20, 1.0, seed=6)
    with pytest.raises(DataError, match="prediction v0: is of no video of the manifest"):
        fit_calibration(validation, _manifest(validation)[1:], LABELS)


def test_a_validation_split_of_one_label_is_refused() -> None:
    validation = [row for row in _system(60, 1.0, seed=7) if row.label == "normal"]
    with pytest.raises(DataError, match="one label only"):
        fit_calibration(validation, _manifest(validation), LABELS)


def test_rows_without_an_answer_stay_as_they_are_and_other_labels_are_refused() -> None:
    fitted = Calibration(labels=LABELS, temperature=2.0, num_clips=9, log_loss_before=1.0, log_loss_after=0.9)
    assert Calibration.model_validate_json(fitted.model_dump_json()) == fitted
    error = Prediction("x", "normal", None, error_code="video_decode")
    assert apply_calibration([error], fitted) == [error]
    with pytest.raises(DataError, match="the calibration is of normal, abnormal, other"):
        apply_calibration([Prediction("y", "normal", "normal", {"normal": 0.5, "abnormal": 0.5})], fitted)
