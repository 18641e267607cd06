"""What a report says, before it is drawn: `ReportData`, and how it is made of predictions, rationales, curves and clips."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from rbft.evaluation.compare import Comparison, compare_predictions
from rbft.evaluation.curves import LossCurve
from rbft.evaluation.metrics import Metrics, answered_modes, evaluate_predictions
from rbft.records import Clip, Example, Prediction, Rationale
from rbft.task import Task

MAIN_SYSTEM = "rb-ft"
BASELINES = ("direct-sft-2", "direct-sft-1")
"""What the main system is compared with; the equal budget first, as it is the headline."""
UNLABELLED = "no label"


@dataclass(frozen=True)
class SystemResult:
    """One system's metrics, in both ways of reading its answer (readings, 12)."""

    name: str
    likelihood: Metrics | None
    """None where the system tells no probabilities; then there is `generate`."""
    generate: Metrics | None
    """None where the system was not asked for text."""

    @property
    def main(self) -> Metrics:
        """By label likelihood where there is that."""
        metrics = self.likelihood or self.generate
        assert metrics is not None
        return metrics


@dataclass(frozen=True)
class SampleStrip:
    """One test video as the report shows it."""

    id: str
    label: str
    answers: dict[str, Prediction]
    """System -> what it said about this video."""
    wrong: bool
    """Whether the main system is wrong about it, by label likelihood where it has that."""
    clip: Clip | None
    rationale: Rationale | None


@dataclass(frozen=True)
class RationaleStatistics:
    """What came out of generation."""

    num_rationales: int
    """Rows with text."""
    num_errors: int
    finish_reasons: dict[str, int]
    error_codes: dict[str, int]
    mean_tokens: float | None
    """Generated tokens of the rows with text; None without such rows."""


@dataclass(frozen=True)
class ReportSection:
    """A section of a report that its caller brings, before the run's own."""

    title: str
    html: Markup


@dataclass(frozen=True)
class ReportData:
    """Everything a report says."""

    title: str
    task: Task
    split_counts: dict[str, dict[str, int]]
    """Split -> label -> videos, in the order of the manifest's splits and the task's labels."""
    systems: tuple[SystemResult, ...]
    comparisons: tuple[Comparison, ...]
    curves: tuple[LossCurve, ...] = ()
    samples: tuple[SampleStrip, ...] = ()
    rationales: RationaleStatistics | None = None
    wall_s: dict[str, float] = field(default_factory=dict)
    """Step -> seconds."""
    versions: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    """What made this run: configuration fingerprint, seed, command, commit."""
    sections: tuple[ReportSection, ...] = ()


def report_data(
    *,
    title: str,
    task: Task,
    examples: Sequence[Example],
    predictions: Mapping[str, Sequence[Prediction]],
    rationales: Sequence[Rationale] = (),
    curves: Sequence[LossCurve] = (),
    sample_ids: Sequence[str] = (),
    clips: Mapping[str, Clip] | None = None,
    sample_rationales: Mapping[str, Rationale] | None = None,
    wall_s: Mapping[str, float] | None = None,
    versions: Mapping[str, str] | None = None,
    provenance: Mapping[str, str] | None = None,
    seed: int = 0,
) -> ReportData:
    """The report of a run: metrics of every system in the order of `predictions`, the main comparisons, and the strips of `sample_ids`.

    `rationales` are what stage 1 was trained on (for the statistics); `sample_rationales` maps the id of a shown video to its rationale.

    Raises:
        DataError: predictions that cannot be evaluated or paired.
    """
    systems = tuple(_result(name, rows, task, seed) for name, rows in predictions.items())
    comparisons = tuple(
        compare_predictions(predictions[MAIN_SYSTEM], predictions[baseline], task.labels, names=(MAIN_SYSTEM, baseline), seed=seed)
        for baseline in BASELINES
        if MAIN_SYSTEM in predictions and baseline in predictions
    )
    return ReportData(
        title=title,
        task=task,
        split_counts=_split_counts(examples, task),
        systems=systems,
        comparisons=comparisons,
        curves=tuple(curves),
        samples=_strips(sample_ids, predictions, clips or {}, sample_rationales or {}),
        rationales=rationale_statistics(rationales) if rationales else None,
        wall_s=dict(wall_s or {}),
        versions=dict(versions or {}),
        provenance=dict(provenance or {}),
    )


def choose_samples(predictions: Mapping[str, Sequence[Prediction]], *, count: int = 12, seed: int = 0) -> list[str]:
    """Ids of the test videos to show: the main system's most confident mistakes, at most two thirds, then right ones drawn by `seed`.

    An error row is a mistake; it comes last of them, as there is nothing to look at.
    """
    rows = _main(predictions)
    wrong = sorted((row for row in rows if _is_wrong(row)), key=lambda row: (-_confidence(row), row.id))
    right = sorted(
        (row for row in rows if not _is_wrong(row)), key=lambda row: hashlib.sha256(f"{seed}:samples:{row.id}".encode()).digest()
    )
    num_wrong = min(len(wrong), max(count - len(right), (2 * count + 2) // 3))
    return [row.id for row in [*wrong[:num_wrong], *right[: count - num_wrong]]]


def rationale_statistics(rationales: Iterable[Rationale]) -> RationaleStatistics:
    """How many rationales there are, how they ended, which errors took their place, and how long they are."""
    rationales = list(rationales)
    written = [rationale for rationale in rationales if rationale.error_code is None]
    num_tokens = [rationale.num_tokens for rationale in written if rationale.num_tokens is not None]
    return RationaleStatistics(
        num_rationales=len(written),
        num_errors=len(rationales) - len(written),
        finish_reasons=dict(Counter(rationale.finish_reason or "unknown" for rationale in written).most_common()),
        error_codes=dict(Counter(rationale.error_code for rationale in rationales if rationale.error_code).most_common()),
        mean_tokens=sum(num_tokens) / len(num_tokens) if num_tokens else None,
    )


def _result(name: str, rows: Sequence[Prediction], task: Task, seed: int) -> SystemResult:
    found = {mode: evaluate_predictions(rows, task.labels, mode, seed=seed) for mode in answered_modes(rows)}
    return SystemResult(name, found.get("likelihood"), found.get("generate"))


def _split_counts(examples: Sequence[Example], task: Task) -> dict[str, dict[str, int]]:
    counts = Counter((example.split or "no split", example.label or UNLABELLED) for example in examples)
    splits = list(dict.fromkeys(example.split or "no split" for example in examples))
    labels = [*task.labels, *([UNLABELLED] if any(label == UNLABELLED for _, label in counts) else [])]
    return {split: {label: counts[split, label] for label in labels} for split in splits}


def _strips(
    ids: Sequence[str], predictions: Mapping[str, Sequence[Prediction]], clips: Mapping[str, Clip], rationales: Mapping[str, Rationale]
) -> tuple[SampleStrip, ...]:
    if not ids:
        return ()
    by_system = {name: {row.id: row for row in rows} for name, rows in predictions.items()}
    main = {row.id: row for row in _main(predictions)}
    strips = [
        SampleStrip(
            id=each,
            label=main[each].label or UNLABELLED,
            answers={name: rows[each] for name, rows in by_system.items() if each in rows},
            wrong=_is_wrong(main[each]),
            clip=clips.get(each),
            rationale=rationales.get(each),
        )
        for each in ids
    ]
    return tuple(sorted(strips, key=lambda strip: not strip.wrong))  # wrong ones first, else as given


def _main(predictions: Mapping[str, Sequence[Prediction]]) -> Sequence[Prediction]:
    """The main system's predictions; the last system's in a run without it."""
    return predictions[MAIN_SYSTEM] if MAIN_SYSTEM in predictions else list(predictions.values())[-1]


def _is_wrong(prediction: Prediction) -> bool:
    return (prediction.predicted or prediction.generated_label) != prediction.label


def _confidence(prediction: Prediction) -> float:
    return prediction.probabilities.get(prediction.predicted, 0.0) if prediction.predicted is not None else 0.0
