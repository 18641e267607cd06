"""The trivial baselines of `rbft.data.trivial` as systems, with predictions like any other's."""

from __future__ import annotations

from collections.abc import Sequence

from rbft.data.trivial import trivial_answers
from rbft.records import Example, Prediction


def baseline_predictions(train: Sequence[Example], test: Sequence[Example], labels: Sequence[str]) -> dict[str, list[Prediction]]:
    """Name of a baseline -> its predictions for `test`, fitted on `train`; none where no video of `train` has a
    label, or `test` is empty."""
    return {
        name: [Prediction(example.id, example.label, given) for example, given in zip(test, answers, strict=True)]
        for name, answers in trivial_answers(train, test, labels).items()
        if test
    }
