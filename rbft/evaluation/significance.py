"""Tests of "these two systems are equally good" on the same clips: McNemar's exact test, and a paired permutation test."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rbft.evaluation.metrics import METRICS, score_confusions

NUM_PERMUTATIONS = 10_000
"""A p-value of 0.05 has then a Monte-Carlo standard error of 0.002."""
_BATCH = 1_000
"""Permutations in memory at a time."""
_TIE = 1e-12
"""Differences nearer than this are equal: sums of the same fractions in another order."""


def mcnemar_exact(num_only_first: int, num_only_second: int) -> float:
    """Two-sided p of McNemar's exact test, from the clips that only the one and only the other system got right (McNemar 1947)."""
    from scipy.stats import binomtest

    num_discordant = num_only_first + num_only_second
    return float(binomtest(num_only_first, num_discordant, 0.5).pvalue) if num_discordant else 1.0


def paired_confusions(
    kinds: NDArray[np.int64], counts_RC: NDArray[np.integer] | NDArray[np.floating], num_labels: int, column: int
) -> NDArray[np.float64]:
    """The confusion matrices [R, K, K + 1] of the answers in `column` of `kinds`.

    `kinds` [C, 3]: the distinct (truth, one answer, other answer); `counts_RC`: how many clips are of each.
    """
    cell = kinds[:, 0] * (num_labels + 1) + kinds[:, column]
    membership = np.zeros((len(kinds), num_labels * (num_labels + 1)))
    membership[np.arange(len(kinds)), cell] = 1
    return (counts_RC @ membership).reshape(-1, num_labels, num_labels + 1)


def permutation_p_values(kinds: NDArray[np.int64], counts_C: NDArray[np.int64], num_labels: int, *, seed: int) -> dict[str, float]:
    """Metric of `METRICS` -> two-sided p of the paired permutation test; `kinds` and counts as in `paired_confusions`.

    Were the systems alike, it would be by chance which of the two gave which answer to a clip: each permutation swaps the answers of
    every clip by a coin, of clips of one kind a binomial number. The data itself counts as one permutation, so p is never 0
    (Phipson & Smyth 2010).
    """
    rng = np.random.default_rng(seed)
    differences: dict[str, list[NDArray[np.float64]]] = {name: [] for name in METRICS}
    for batch in range(1 + NUM_PERMUTATIONS // _BATCH):  # the first is the data itself
        swapped_RC = rng.binomial(counts_C, 0.5, size=(_BATCH, len(counts_C))) if batch else np.zeros((1, len(counts_C)), dtype=np.int64)
        kept_RC = counts_C - swapped_RC
        scores = [
            score_confusions(paired_confusions(kinds, kept_RC, num_labels, mine) + paired_confusions(kinds, swapped_RC, num_labels, other))
            for mine, other in ((1, 2), (2, 1))
        ]
        for name in METRICS:
            differences[name].append(np.abs(scores[0][name] - scores[1][name]))
    values = {name: np.concatenate(parts) for name, parts in differences.items()}
    return {name: float(np.mean(each >= each[0] - _TIE)) for name, each in values.items()}
