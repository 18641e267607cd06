"""`report.html`: one file that needs nothing else, neither a script nor the network.

Every text that comes from outside is escaped by the template engine; a content security policy in the page forbids the rest. What opens,
a cell of a confusion matrix say, opens by style sheet alone: its link names a place in the page, and `:target` shows what belongs to it.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from rbft import storage
from rbft.evaluation.cells import Cell
from rbft.evaluation.compare import Comparison
from rbft.evaluation.figures import IntervalRow, interval_plot, loss_plot
from rbft.evaluation.html_pages import PAGES
from rbft.evaluation.metrics import METRICS, Metrics, metrics_from_confusion
from rbft.evaluation.paper import SMARTHOME_LABELS, PaperRow, paper_table
from rbft.evaluation.probabilities import ProbabilityMetrics
from rbft.evaluation.provenance import DEFINITIONS
from rbft.evaluation.reliability import reliability_plot
from rbft.evaluation.report_data import ReportData
from rbft.evaluation.tables import METRIC_TITLES, difference_sentence, system_title
from rbft.evaluation.video_cards import VideoCard, make_cards

MAX_F1_COLUMNS = 3
"""Labels whose F1 stands in the first table, as in the paper's; those of more stand in a table of their own only."""
MAX_MATRIX_LABELS = 30
"""Labels whose confusion matrix is drawn; of more it would fill no screen and the page, and its largest cells are listed."""
NUM_LARGEST = 30
"""Mistakes that are listed of a system where no matrix is drawn."""
NUM_AT_FIRST = 6
"""Videos that stand open before a cell is chosen."""


def render_report(report: ReportData) -> str:
    """The report as one HTML page."""
    return PAGES.get_template("report.html.j2").render(_context(report))


def write_report(report: ReportData, uri: str) -> None:
    """Write the page to the file `uri`, whole or not at all, replacing what was there."""
    storage.write_bytes(uri, render_report(report).encode())


def _context(report: ReportData) -> dict[str, Any]:
    majority = next(iter(report.baselines.values()), None)
    likelihood = [(system.name, system.likelihood) for system in report.systems if system.likelihood is not None]
    modes = [("By label likelihood", "likelihood", likelihood)] if likelihood else []
    generate = [(system.name, system.generate) for system in report.systems if system.generate is not None]
    if generate:
        modes.append(("By generated text", "generate", generate))
    cards = make_cards(report.videos, report.cells, report.task.labels)
    opened = _opened(report.cells, cards)
    return {
        "report": report,
        "headlines": [difference_sentence(comparison) for comparison in report.comparisons],
        "metric_titles": METRIC_TITLES,
        "definitions": DEFINITIONS,
        "modes": modes,
        "by_text": any(system.likelihood is None for system in report.systems),
        "majority": majority,
        "f1_labels": report.task.labels if len(report.task.labels) <= MAX_F1_COLUMNS else (),
        "ranked": _ranked(report),
        "reliability": [(title, reliability_plot(found, description=f"reliability of {title}")) for title, found, _ in _ranked(report)],
        "slices": _slice_rows(report),
        "metric_plots": [(METRIC_TITLES[name], _metric_plot(report, majority, name)) for name in METRICS] if majority else [],
        "comparison_plots": [(METRIC_TITLES[name], comparison_plot(report.comparisons, name)) for name in METRICS]
        if report.comparisons
        else [],
        "has_matrices": len(report.task.labels) <= MAX_MATRIX_LABELS,
        "largest": lambda system, mode: _largest_mistakes(report.cells, system, mode),
        "cells": {(cell.system, cell.mode, cell.row, cell.column): cell for cell, _ in opened},
        "cards": cards,
        "num_at_first": NUM_AT_FIRST,
        "opened": opened,
        "files": {source.system: source.line for source in report.sources},
        "curves": [(curve, loss_plot(curve)) for curve in report.curves],
        "paper_tables": [(table, [(row, _decoded(row)) for row in paper_table(table)]) for table in (1, 2)],
    }


def _opened(cells: tuple[Cell, ...], cards: tuple[VideoCard, ...]) -> list[tuple[Cell, int]]:
    """Each cell that opens, and how many of its videos are shown: those with any, which are few however many labels there are."""
    shown = {card.video.id for card in cards}
    counted = ((cell, len(shown.intersection(cell.ids))) for cell in cells)
    return [(cell, num_shown) for cell, num_shown in counted if num_shown]


def _largest_mistakes(cells: tuple[Cell, ...], system: str, mode: str) -> list[Cell]:
    """The cells of one matrix that hold the most mistakes."""
    mistakes = (cell for cell in cells if (cell.system, cell.mode) == (system, mode) and cell.is_wrong)
    return sorted(mistakes, key=lambda cell: -len(cell.ids))[:NUM_LARGEST]


def _ranked(report: ReportData) -> list[tuple[str, ProbabilityMetrics, Metrics]]:
    """(title, metrics of the probabilities, metrics of the answers), a calibrated system after the same without."""
    rows = []
    for system in report.systems:
        if system.probabilities is not None:
            rows.append((system_title(system.name), system.probabilities, system.main))
        if system.calibrated is not None:
            fitted = system.calibrated.calibration
            answered = "" if fitted.threshold is None else f", answered from {fitted.threshold:.3f}"
            title = f"… calibrated: temperature {fitted.temperature:.3f}{answered}"
            rows.append((title, system.calibrated.probabilities, system.calibrated.likelihood))
    return rows


def _slice_rows(report: ReportData) -> list[tuple[str, str, int, list[Metrics | None]]]:
    """(what divides, name, clips, each system's metrics) of every slice of any system."""
    keys = dict.fromkeys((part.by, part.name) for system in report.systems for part in system.slices)
    by_system = [{(part.by, part.name): part.metrics for part in system.slices} for system in report.systems]
    rows = []
    for by, name in keys:
        found = [slices.get((by, name)) for slices in by_system]
        rows.append((by, name, max(metrics.num_clips for metrics in found if metrics), found))
    return rows


def _metric_plot(report: ReportData, majority: Metrics, metric: str) -> Markup:
    rows = [
        IntervalRow(
            system_title(system.name) + ("" if system.likelihood else ", by text"), getattr(system.main, metric), system.main.ci95[metric]
        )
        for system in report.systems
    ]
    description = f"{METRIC_TITLES[metric]} by system with 95 % intervals, per cent; the dashed line is the first baseline"
    return interval_plot(rows, description=description, ends=(0.0, 1.0), reference=getattr(majority, metric))


def comparison_plot(comparisons: tuple[Comparison, ...], metric: str) -> Markup:
    """Differences of `metric` with their intervals; the axis is the same for every metric."""
    rows = [
        IntervalRow(
            f"{system_title(comparison.system)} − {system_title(comparison.baseline)}",
            comparison.differences[metric].value,
            comparison.differences[metric].ci95,
        )
        for comparison in comparisons
    ]
    # One axis for the three metrics, wide enough for all of them and the same on both sides of zero.
    reach = max(abs(end) for comparison in comparisons for difference in comparison.differences.values() for end in difference.ci95)
    reach = max(0.05, min(1.0, 1.05 * reach))
    description = f"difference of {METRIC_TITLES[metric]} with 95 % intervals, percentage points; the dashed line is zero"
    return interval_plot(rows, description=description, ends=(-reach, reach), reference=0.0, signed=True)


def _decoded(row: PaperRow) -> Metrics | None:
    """The metrics of a paper row's one fitting confusion matrix; None where there is no such matrix."""
    return metrics_from_confusion(row.confusion, SMARTHOME_LABELS) if row.confusion else None
