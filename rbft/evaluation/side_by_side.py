"""Two systems on the same clips, for the terminal and as JSON: what `rbft compare` says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from rbft.evaluation.compare import Comparison, compare_predictions
from rbft.evaluation.metrics import METRICS, MODE_TITLES, Metrics, Mode, evaluate_predictions
from rbft.evaluation.probabilities import PROBABILITY_METRICS, ProbabilityMetrics, evaluate_probabilities, has_probabilities
from rbft.evaluation.tables import METRIC_TITLES, PROBABILITY_TITLES, aligned, interval, p_text, percent, plain_difference, points
from rbft.records import Prediction

_MAX_LISTED = 12


class SideBySide(BaseModel):
    """Two systems' metrics and their difference; the first is the system, the second the baseline it is compared with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: tuple[Metrics, Metrics]
    probabilities: tuple[ProbabilityMetrics | None, ProbabilityMetrics | None]
    comparison: Comparison


def side_by_side(
    system: Sequence[Prediction],
    baseline: Sequence[Prediction],
    labels: Sequence[str],
    *,
    names: tuple[str, str],
    mode: Mode | None = None,
    seed: int = 0,
) -> SideBySide:
    """`system` beside `baseline`; raises `DataError` as `compare_predictions` and `evaluate_probabilities`."""
    comparison = compare_predictions(system, baseline, labels, names=names, mode=mode, seed=seed)
    first, second = (
        (
            evaluate_predictions(rows, labels, how, seed=seed),
            evaluate_probabilities(rows, labels, seed=seed) if has_probabilities(rows) else None,
        )
        for rows, how in zip((system, baseline), comparison.modes, strict=True)
    )
    return SideBySide(metrics=(first[0], second[0]), probabilities=(first[1], second[1]), comparison=comparison)


def how_read(comparison: Comparison) -> str:
    """How the answers were read, in words: for both systems at once where that is the same."""
    one, other = (MODE_TITLES[mode] for mode in comparison.modes)
    return f"by {one}" if one == other else f"{comparison.system} by {one}, {comparison.baseline} by {other}"


def side_by_side_text(found: SideBySide) -> str:
    """The table for the terminal, the tests, and the clips on which the two differ."""
    comparison = found.comparison
    lines = [["", comparison.system, comparison.baseline, "difference", "permutation p"]]
    for name in METRICS:
        difference = comparison.differences[name]
        shares = [f"{percent(getattr(each, name))} {interval(each.ci95[name])}" for each in found.metrics]
        p_value = "" if difference.permutation_p is None else p_text(difference.permutation_p)
        lines.append([METRIC_TITLES[name], *shares, f"{points(difference.value)} {interval(difference.ci95)}", p_value])
    lines.append(["answered", *(percent(each.coverage) for each in found.metrics), "", ""])
    for name in PROBABILITY_METRICS:
        values = [None if each is None else getattr(each, name) for each in found.probabilities]
        if any(value is not None for value in values):
            cells = ["–" if value is None else f"{value:.4f}" for value in values]
            lines.append([PROBABILITY_TITLES[name], *cells, plain_difference(comparison.probability_differences.get(name)), ""])
    text = [
        f"{comparison.num_clips} clips, {how_read(comparison)}",
        *aligned(lines),
        f"McNemar's exact test of the accuracies: p = {p_text(comparison.mcnemar_p)}",
        _listed(f"only {comparison.system} is right", comparison.only_system),
        _listed(f"only {comparison.baseline} is right", comparison.only_baseline),
        _listed("both wrong, with other answers", comparison.both_wrong),
        "In brackets: 95 % intervals, a paired bootstrap over the clips; other training seeds are not covered.",
    ]
    return "\n".join(text)


def side_by_side_json(found: SideBySide) -> dict[str, Any]:
    """The same as JSON types, with all ids."""
    comparison = found.comparison
    return {
        "systems": {
            name: {
                "metrics": metrics.model_dump(mode="json"),
                "probabilities": None if probabilities is None else probabilities.model_dump(mode="json"),
            }
            for name, metrics, probabilities in zip(("system", "baseline"), found.metrics, found.probabilities, strict=True)
        },
        "comparison": comparison.model_dump(mode="json"),
    }


def _listed(title: str, ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _MAX_LISTED} more (--json has all)" if len(ids) > _MAX_LISTED else ""
    return f"{title}: {len(ids)}" + (f" ({', '.join(ids[:_MAX_LISTED])}{more})" if ids else "")
