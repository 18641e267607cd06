"""What a report says, before it is drawn: `ReportData`, and how it is made of predictions, rationales, curves and clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from rbft.evaluation.calibration import Calibration
from rbft.evaluation.cells import Cell, make_cells
from rbft.evaluation.compare import Comparison, compare_predictions
from rbft.evaluation.curves import LossCurve
from rbft.evaluation.measures import Measures, measure
from rbft.evaluation.metrics import Metrics, answer, answered_modes, confidence, evaluate_predictions
from rbft.evaluation.probabilities import ProbabilityMetrics
from rbft.evaluation.provenance import Source
from rbft.evaluation.slices import Slice, category_groups, duration_groups, slice_metrics
from rbft.evaluation.tables import own_majority
from rbft.evaluation.trivial import baseline_predictions
from rbft.records import Clip, Example, Prediction, Rationale
from rbft.task import Task

MAIN_SYSTEM = "rb-ft"
BASELINES = ("direct-sft-2", "direct-sft-1")
"""What the main system is compared with; the equal budget first, as it is the headline."""
UNLABELLED = "no label"


@dataclass(frozen=True)
class CalibratedResult:
    """The same system with what was fitted on the validation split."""

    calibration: Calibration
    likelihood: Metrics
    probabilities: ProbabilityMetrics

    @staticmethod
    def of(calibration: Calibration, measures: Measures) -> CalibratedResult | None:
        """None where the system tells no probabilities."""
        if measures.likelihood is None or measures.probabilities is None:
            return None
        return CalibratedResult(calibration, measures.likelihood, measures.probabilities)


@dataclass(frozen=True)
class SystemResult:
    """One system's metrics, in both ways of reading its answer (readings, 12)."""

    name: str
    likelihood: Metrics | None
    """None where the system tells no probabilities; then there is `generate`."""
    generate: Metrics | None
    """None where the system was not asked for text."""
    probabilities: ProbabilityMetrics | None = None
    """None where it gave none."""
    calibrated: CalibratedResult | None = None
    """None where nothing was calibrated."""
    slices: tuple[Slice, ...] = ()
    """Of `main`: categories, durations, each only where the videos have them."""

    @property
    def main(self) -> Metrics:
        """By label likelihood where there is that."""
        metrics = self.likelihood or self.generate
        assert metrics is not None
        return metrics


@dataclass(frozen=True)
class ShownVideo:
    """One test video as the report shows it."""

    id: str
    label: str
    answers: dict[str, Prediction]
    """System -> what it said about this video."""
    wrong: bool
    """Whether the main system is wrong about it, by label likelihood where it has that."""
    clip: Clip | None
    rationale: Rationale | None
    """What the main system's model writes when it is asked for one."""
    attention: Clip | None
    """`clip` under the heatmap of where the main system's model looks."""


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
    baselines: dict[str, Metrics] = field(default_factory=dict)
    """Name -> metrics of answers that look at no video: fitted on the training labels, or where there are none on the tested clips."""
    curves: tuple[LossCurve, ...] = ()
    cells: tuple[Cell, ...] = ()
    """Of all confusion matrices."""
    videos: tuple[ShownVideo, ...] = ()
    """The main system's mistakes first, the least certain of them first; then what it gets right, likewise."""
    sources: tuple[Source, ...] = ()
    """Of the systems, where that is known."""
    seed: int = 0
    """Of the resamples."""
    notes: tuple[str, ...] = ()
    """What could not be shown, and why."""
    rationales: RationaleStatistics | None = None
    wall_s: dict[str, float] = field(default_factory=dict)
    """Step -> seconds."""
    versions: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    """What made this run: configuration fingerprint, seed, command, commit."""
    sections: tuple[ReportSection, ...] = ()

    @property
    def main_system(self) -> str:
        """The one that the report is about."""
        return main_system({system.name: system for system in self.systems})

    @property
    def has_rationales(self) -> bool:
        return any(video.rationale is not None for video in self.videos)

    @property
    def has_attention(self) -> bool:
        return any(video.attention is not None for video in self.videos)


def report_data(
    *,
    title: str,
    task: Task,
    examples: Sequence[Example],
    predictions: Mapping[str, Sequence[Prediction]],
    rationales: Sequence[Rationale] = (),
    curves: Sequence[LossCurve] = (),
    shown_ids: Collection[str] = (),
    clips: Mapping[str, Clip] | None = None,
    explanations: Mapping[str, Rationale] | None = None,
    heatmaps: Mapping[str, Clip] | None = None,
    sources: Sequence[Source] = (),
    wall_s: Mapping[str, float] | None = None,
    versions: Mapping[str, str] | None = None,
    provenance: Mapping[str, str] | None = None,
    measures: Mapping[str, Measures] | None = None,
    calibrated: Mapping[str, CalibratedResult | None] | None = None,
    durations_s: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
    seed: int = 0,
) -> ReportData:
    """The report of a run: metrics of every system in the order of `predictions`, the main comparisons, and the videos `shown_ids`.

    `rationales` are what stage 1 was trained on (for the statistics); `clips`, `explanations` and `heatmaps` map ids of shown videos to
    what is shown of them; `measures` maps systems to their metrics where those are known, `calibrated` to what was fitted for them and what
    it brings; `durations_s` maps ids to the seconds of their clips, for the slices.

    Raises:
        DataError: predictions that cannot be evaluated or paired.
    """
    tested = {row.id for rows in predictions.values() for row in rows}
    groups = {"category": category_groups(example for example in examples if example.id in tested)}
    groups["duration"] = duration_groups({id_: seconds for id_, seconds in (durations_s or {}).items() if id_ in tested})
    measured = {name: (measures or {}).get(name) or measure(rows, task.labels, seed) for name, rows in predictions.items()}
    systems = tuple(
        _result(name, rows, task, groups, measured[name], (calibrated or {}).get(name), seed) for name, rows in predictions.items()
    )
    comparisons = tuple(
        compare_predictions(predictions[MAIN_SYSTEM], predictions[baseline], task.labels, names=(MAIN_SYSTEM, baseline), seed=seed)
        for baseline in BASELINES
        if MAIN_SYSTEM in predictions and baseline in predictions
    )
    cells = make_cells(predictions, task.labels)
    return ReportData(
        title=title,
        task=task,
        split_counts=_split_counts(examples, task),
        systems=systems,
        comparisons=comparisons,
        baselines=_baselines(examples, tested, task, systems),
        curves=tuple(curves),
        cells=cells,
        videos=_shown(shown_ids, predictions, clips or {}, explanations or {}, heatmaps or {}),
        sources=tuple(sources),
        rationales=rationale_statistics(rationales) if rationales else None,
        wall_s=dict(wall_s or {}),
        versions=dict(versions or {}),
        provenance=dict(provenance or {}),
        notes=tuple(notes),
        seed=seed,
    )


def main_system(predictions: Mapping[str, Any]) -> str:
    """The one that the report is about: RB-FT, or in a run without it the last."""
    return MAIN_SYSTEM if MAIN_SYSTEM in predictions else list(predictions)[-1]


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


def _result(
    name: str,
    rows: Sequence[Prediction],
    task: Task,
    groups: Mapping[str, Mapping[str, set[str]]],
    measures: Measures,
    calibrated: CalibratedResult | None,
    seed: int,
) -> SystemResult:
    mode = answered_modes(rows)[0]
    slices = (slice_metrics(rows, task.labels, ids, by=by, mode=mode, seed=seed) for by, ids in groups.items())
    return SystemResult(
        name=name,
        likelihood=measures.likelihood,
        generate=measures.generate,
        probabilities=measures.probabilities,
        calibrated=calibrated,
        slices=tuple(part for parts in slices for part in parts),
    )


def _baselines(examples: Sequence[Example], tested: set[str], task: Task, systems: Sequence[SystemResult]) -> dict[str, Metrics]:
    test = [example for example in examples if example.id in tested and example.label is not None]
    train = [example for example in examples if example.split == "train" and example.id not in tested]
    found = baseline_predictions(train, test, task.labels)
    if not found:
        return own_majority(systems[0].main) if systems else {}
    return {name: evaluate_predictions(rows, task.labels) for name, rows in found.items()}


def _split_counts(examples: Sequence[Example], task: Task) -> dict[str, dict[str, int]]:
    counts = Counter((example.split or "no split", example.label or UNLABELLED) for example in examples)
    splits = list(dict.fromkeys(example.split or "no split" for example in examples))
    labels = [*task.labels, *([UNLABELLED] if any(label == UNLABELLED for _, label in counts) else [])]
    return {split: {label: counts[split, label] for label in labels} for split in splits}


def _shown(
    ids: Collection[str],
    predictions: Mapping[str, Sequence[Prediction]],
    clips: Mapping[str, Clip],
    explanations: Mapping[str, Rationale],
    heatmaps: Mapping[str, Clip],
) -> tuple[ShownVideo, ...]:
    if not ids:
        return ()
    by_system = {name: {row.id: row for row in rows} for name, rows in predictions.items()}
    main = main_system(predictions)
    rows = by_system[main]
    mode = answered_modes(predictions[main])[0]
    videos = [
        ShownVideo(
            id=id_,
            label=rows[id_].label or UNLABELLED,
            answers={name: of_system[id_] for name, of_system in by_system.items() if id_ in of_system},
            wrong=answer(rows[id_], mode) != rows[id_].label,
            clip=clips.get(id_),
            rationale=explanations.get(id_),
            attention=heatmaps.get(id_),
        )
        for id_ in ids
    ]
    return tuple(sorted(videos, key=lambda video: (not video.wrong, confidence(rows[video.id], mode) or 0.0, video.id)))
