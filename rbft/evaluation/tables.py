"""Results as text: numbers with their intervals, the terminal's table, the summary's dictionary, the sentence that says what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rbft.evaluation.compare import Comparison, Difference
from rbft.evaluation.metrics import METRICS, Interval, Metrics, metrics_from_confusion
from rbft.evaluation.probabilities import ProbabilityMetrics
from rbft.systems import parse_system, split_masks

SYSTEM_TITLES = {
    "zero-shot": "Zero-shot",
    "direct-sft-1": "Direct-SFT (1 epoch)",
    "direct-sft-2": "Direct-SFT (2 epochs)",
    "rb-ft": "RB-FT",
    "rb-ft-shuffled": "RB-FT, shuffled rationales",
    "rb-ft-human": "RB-FT, human rationales",
    "rb-ft-mix": "RB-FT, {own} % own rationales, else human",
    "rb-ft-part": "RB-FT, {own} % of the rationales",
    "rb-ft-label-first": "RB-FT, label then rationale",
    "rb-ft-label-last": "RB-FT, rationale then label",
    "rb-ft-unlabelled": "RB-FT, unlabelled videos too",
    "gpt-4.1": "GPT-4.1",
    "gpt-4o": "GPT-4o",
    "gpt-4o-mini": "GPT-4o-mini",
    "gemini-2.5-flash": "Gemini-2.5-Flash",
    "gemini-2.5-pro": "Gemini-2.5-Pro",
}
METRIC_TITLES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1"}
PROBABILITY_TITLES = {"auroc": "AUROC", "ece": "ECE", "log_loss": "log-loss", "brier": "Brier score"}


def system_title(system: str) -> str:
    """How a system is called in print; its own name where it has no title."""
    system, masks = split_masks(system)
    if masks is not None:
        return f"{system_title(system)}, {masks} masks"
    try:
        meaning = parse_system(system)
    except ValueError:
        return SYSTEM_TITLES.get(system, system)
    title = SYSTEM_TITLES[meaning.family].format(own=meaning.own_percent)
    return f"{title}, {meaning.num_labels} labels" if meaning.num_labels else title


def percent(share: float) -> str:
    """A share in 0..1 as "82.65 %"."""
    return f"{100 * share:.2f} %"


def interval(ends: Interval) -> str:
    """A 95 % interval of shares as "[76.53, 87.76]", in per cent."""
    low, high = ends
    return f"[{_signless(low)}, {_signless(high)}]"


def points(difference: float) -> str:
    """A difference of shares as "+3.10" or "−1.02", in percentage points; zero has no sign."""
    text = _signless(difference)
    return f"+{text}" if difference > 0 and text != "0.00" else text


def signed(value: float) -> str:
    """A plain difference as "+0.0310" or "−0.0102"; zero has no sign."""
    text = f"{value:+.4f}"
    return "0.0000" if text in ("+0.0000", "-0.0000") else text.replace("-", "−")


def plain_difference(difference: Difference | None) -> str:
    """A plain difference with its interval, as `signed` has them; a dash where there is none."""
    if difference is None:
        return "–"
    low, high = difference.ci95
    return f"{signed(difference.value)} [{signed(low)}, {signed(high)}]"


def p_text(p_value: float) -> str:
    """A p-value as "0.032" or "< 0.001"."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def duration(seconds: float) -> str:
    """Seconds as "9.4 s", "3 min 05 s" or "2 h 07 min"."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def own_majority(metrics: Metrics) -> dict[str, Metrics]:
    """The baseline of a test set without training labels to fit one on: its own most frequent label, by name."""
    return {f"always {metrics.majority_label!r}": majority_metrics(metrics)}


def majority_metrics(metrics: Metrics) -> Metrics:
    """The metrics of always answering the most frequent label of the clips that `metrics` is about."""
    majority = metrics.labels.index(metrics.majority_label)
    confusion = [[0] * len(metrics.labels) for _ in metrics.labels]
    for row, label in enumerate(metrics.labels):
        confusion[row][majority] = metrics.per_class[label].support
    return metrics_from_confusion(confusion, metrics.labels)


def summary_json(
    systems: Mapping[str, Metrics], probabilities: Mapping[str, ProbabilityMetrics] | None = None
) -> dict[str, dict[str, Any]]:
    """The `systems` part of summary.json: system -> accuracy, macro_f1, balanced_accuracy, and as ci95 the accuracy's [low, high].

    With auroc and ece for the systems that have probabilities.
    """
    calibration = {name: {"auroc": found.auroc, "ece": found.ece} for name, found in (probabilities or {}).items()}
    return {
        name: {
            "accuracy": metrics.accuracy,
            "macro_f1": metrics.macro_f1,
            "balanced_accuracy": metrics.balanced_accuracy,
            "ci95": list(metrics.ci95["accuracy"]),
            **calibration.get(name, {}),
        }
        for name, metrics in systems.items()
    }


def table_text(
    likelihood: Mapping[str, Metrics],
    generate: Mapping[str, Metrics] | None = None,
    *,
    probabilities: Mapping[str, ProbabilityMetrics] | None = None,
    baselines: Mapping[str, Metrics] | None = None,
) -> str:
    """The table for the terminal: a block for each mode, a line for each system, each share in per cent with its 95 % interval.

    Without `baselines` it ends with the most frequent label of the tested clips themselves.
    """
    ranked = [PROBABILITY_TITLES[name] for name in ("auroc", "ece")] if probabilities else []
    header = [*(METRIC_TITLES[name] for name in METRICS), "answered"]
    lines: list[list[str]] = []
    if likelihood:
        lines.append(["by label likelihood", *header, *ranked])
        for name, metrics in likelihood.items():
            found = (probabilities or {}).get(name)
            lines.append([f"  {system_title(name)}", *_cells(metrics), *([] if found is None else _probability_cells(found))])
    if generate:
        lines += [["by generated text", *header], *([f"  {system_title(name)}", *_cells(metrics)] for name, metrics in generate.items())]
    if first := next(iter([*likelihood.values(), *(generate or {}).values()]), None):
        lines.append(["baseline", *header])
        trivial = baselines or own_majority(first)
        lines += [[f"  {name}", *_cells(metrics, intervals=False)] for name, metrics in trivial.items()]
    return "\n".join(aligned(lines))


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines whose columns stand below one another; rows may end early."""
    columns = max((len(line) for line in lines), default=0)
    widths = [max(len(line[column]) for line in lines if column < len(line)) for column in range(columns)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in lines]


def difference_sentence(comparison: Comparison, metric: str = "balanced_accuracy") -> str:
    """One sentence that says the difference, its interval, and whether that interval leaves zero out."""
    difference = comparison.differences[metric]
    low, high = (points(end).lstrip("+") for end in difference.ci95)
    verdict = "not distinguishable from zero"
    if difference.excludes_zero:
        verdict = "above zero" if difference.value > 0 else "below zero"
    return (
        f"{system_title(comparison.system)} − {system_title(comparison.baseline)}: {points(difference.value)} points "
        f"{METRIC_TITLES[metric]}, 95 % interval {low} to {high}: {verdict}"
    )


def _cells(metrics: Metrics, *, intervals: bool = True) -> list[str]:
    cells = [percent(getattr(metrics, name)) + (f" {interval(metrics.ci95[name])}" if intervals else "") for name in METRICS]
    return [*cells, percent(metrics.coverage)]


def _probability_cells(found: ProbabilityMetrics) -> list[str]:
    return ["–" if found.auroc is None else f"{found.auroc:.3f}", f"{found.ece:.3f}"]


def _signless(share: float) -> str:
    text = f"{100 * share:.2f}"
    return "0.00" if text == "-0.00" else text.replace("-", "−")
