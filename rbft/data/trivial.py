"""What answers that look at no video would score: the majority label, and each category's majority label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rbft.records import Example


def trivial_answers(train: Sequence[Example], test: Sequence[Example], labels: Sequence[str]) -> dict[str, list[str]]:
    """Name of a baseline -> its answer to each of `test`, fitted on the labels of `train`; without a labelled `train` there is none.

    A category is what `Example.category` holds, several in one cell ("Security, Wildlife") being one of its own. A category that `train`
    does not have gets the majority label; ties go to the earlier of `labels`. Without categories there is no baseline by category.
    """
    labelled = [example for example in train if example.label in labels]
    if not labelled:
        return {}
    majority = _majority(labelled, labels)
    answers = {f"always {majority!r}": [majority] * len(test)}
    categories = {example.category for example in labelled if example.category is not None}
    if categories:
        by_category = {category: _majority([row for row in labelled if row.category == category], labels) for category in categories}
        answers["each category's majority label"] = [by_category.get(example.category or "", majority) for example in test]
    return answers


def _majority(examples: Sequence[Example], labels: Sequence[str]) -> str:
    counts = Counter(example.label for example in examples)
    return max(labels, key=lambda label: (counts[label], -labels.index(label)))
