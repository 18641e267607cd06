"""The results of an experiment as files: evidence.json (every number), evidence.md with its figures, and a section of report.html."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from miniature.analysis import BASE, TAUGHT, Disagreement, SlotScores, World, disagreements, label_curve, slot_scores
from miniature.protocol import FIRST, Protocol
from miniature.slots import SLOT_NAMES
from ray_jobs.run import Run
from rbft.evaluation.curves import LossCurve, read_curve
from rbft.evaluation.figures import Series, beside, line_plot, loss_plot, standalone
from rbft.evaluation.report import write_report
from rbft.evaluation.report_data import ReportData, ReportSection
from rbft.evaluation.study import Estimate, Study, make_study
from rbft.evaluation.tables import METRIC_TITLES, duration, interval, points, system_title
from rbft.layout import Stage

METRIC = "balanced_accuracy"
_PLOTTED: tuple[tuple[str, Stage], ...] = (("direct-sft-2", "classify"), ("rb-ft", "rationale"), ("rb-ft", "classify"))
"""Stages whose losses are drawn."""


@dataclass(frozen=True)
class Findings:
    """What the page and evidence.json say, made once."""

    study: Study
    titled_study: Study
    """Of the titled world alone."""
    curves: dict[str, dict[int, Estimate]]
    """System -> number of labels -> `METRIC`."""
    slots: dict[str, SlotScores]
    """By writer."""
    disagreements: list[Disagreement]
    losses: list[float]
    """Of every step of RB-FT's stage 1, all worlds."""


def find(protocol: Protocol, runs: Sequence[Run], worlds: Sequence[World]) -> Findings:
    """The findings of finished worlds, the titled one last."""
    *plain, titled = worlds
    task, headline = runs[0].config.task, protocol.headline
    study = make_study([world.predictions for world in plain], task.labels)
    return Findings(
        study,
        make_study([titled.predictions], runs[-1].config.task.labels),
        label_curve(study, protocol.curve_systems, protocol.label_counts, protocol.sizes["train"], METRIC),
        {writer: slot_scores(plain, writer, task) for writer in plain[0].rationales},
        disagreements(plain, headline.system, headline.baseline),
        [loss for run in runs[:-1] for loss in _losses(run, "rb-ft", "rationale")],
    )


def write_results(protocol: Protocol, folder: Path, runs: Sequence[Run], worlds: Sequence[World], report: ReportData) -> None:
    """Write evidence.json, evidence.md, its figures as SVG, and report.html to `folder`; print the verdict.

    `runs` and `worlds` end with the titled world; `report` is the first world's, which the section is put before.
    """
    found = find(protocol, runs, worlds)
    figures = {"losses": _loss_figure(runs[:-1])}
    if protocol.label_counts:
        figures["label-curve"] = _curve_figure(found.curves)
    context = _context(protocol, runs, worlds, found)
    for name, svg in figures.items():
        (folder / f"{protocol.name}-{name}.svg").write_text(standalone(svg))
    (folder / "evidence.json").write_text(json.dumps(_numbers(protocol, found), indent=2) + "\n")
    page = _render(context, lambda name: f"![{name}]({protocol.name}-{name}.svg)")
    (folder / "evidence.md").write_text(f"# {protocol.question} The miniature world’s answer\n\n{page}")
    section = ReportSection(f"{protocol.question} Miniature world", _html(_render(context, lambda name: f"FIGURE-{name}"), figures))
    write_report(dataclasses.replace(report, sections=(section,)), str(folder / "report.html"))
    print(f"\n{context['verdict']}\n\nevidence: {folder}/evidence.md\nreport:   {folder}/report.html")


def verdict(protocol: Protocol, study: Study) -> str:
    """The first sentence: what came out, whatever it is."""
    headline = protocol.headline
    difference = study.difference(headline.system, headline.baseline, headline.metric)
    names = f"{system_title(headline.system)} − {system_title(headline.baseline)}"
    said = f"{names}: {_points(difference)} points of {METRIC_TITLES[headline.metric]}."
    if not protocol.frozen:
        said += " A rehearsal: the protocol is not frozen yet."
    if not difference.excludes_zero:
        return f"No effect shown. {said}"
    return f"{system_title(headline.system)} is {'better' if difference.value > 0 else 'worse'}. {said}"


def _render(context: dict[str, Any], figure: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("miniature", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown; every text in it is ours
    )
    page = environment.get_template("evidence.md.j2").render(context, figure=figure)
    return "\n".join(line.rstrip() for line in page.splitlines()) + "\n"


def _html(markdown: str, figures: dict[str, Markup]) -> Markup:
    from markdown_it import MarkdownIt

    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    for name, svg in figures.items():
        html = html.replace(f"<p>FIGURE-{name}</p>", f"<figure>{svg}</figure>")
    return Markup(html)  # made above from our own template, with HTML in the text escaped


def _context(protocol: Protocol, runs: Sequence[Run], worlds: Sequence[World], found: Findings) -> dict[str, Any]:
    config, study, titled = runs[0].config, found.study, worlds[-1]
    headline, counts = protocol.headline, [*protocol.label_counts, protocol.sizes["train"]]
    title_labels = runs[-1].config.task.labels
    return {
        "verdict": verdict(protocol, study),
        "protocol": protocol,
        "num_worlds": study.num_repetitions,
        "sizes": protocol.sizes,
        "miniature_readme": "../miniature/README.md",
        "labels": config.task.labels,
        "systems": [_system_row(study, system) for system in protocol.systems],
        "questions": [_question(study, *question) for question in _questions(protocol)],
        "where": _where(protocol, found),
        "readings": _readings(protocol, found, _minority(worlds[0])),
        "first": FIRST,
        "counts": counts if protocol.label_counts else [],
        "curve": [
            {"title": system_title(system), "cells": [_share(curve[count]) for count in counts]} for system, curve in found.curves.items()
        ],
        "slots": [_slot_row(scores) for scores in found.slots.values()],
        "slot_clips": found.slots[BASE].num_clips // study.num_repetitions,
        "severities": list(found.slots[BASE].by_severity),
        "system": system_title(headline.system),
        "baseline": system_title(headline.baseline),
        "disagreements": [
            dataclasses.asdict(row) | {"net": points((row.only_system - row.only_baseline) / row.num_clips)} for row in found.disagreements
        ],
        "titled": {
            "seed": titled.seed,
            "labels": title_labels,
            "shares": _class_shares(titled, title_labels),
            "systems": [_system_row(found.titled_study, system) for system in protocol.systems],
            "learned": _learned(found.titled_study, protocol.systems, len(title_labels)),
            "difference": _difference_sentence(found.titled_study, headline.system, headline.baseline, "macro_f1"),
        },
        "machine": f"{os.cpu_count()} CPU cores",
        "wall": ", ".join(f"{step} {duration(seconds)}" for step, seconds in runs[0].fact("wall_s", {}).items()),
        "total": duration(sum(runs[0].fact("wall_s", {}).values())),
        "workers": config.training.num_workers,
        "epochs": config.training.rationale_epochs,
        "batch": config.training.global_batch_size,
        "num_models": study.num_repetitions * (len(protocol.all_systems) - 1) + len(protocol.systems) - 1,
        "rates": ", ".join(f"{system} {rate:g}" for system, rate in protocol.learning.rates.items()),
        "versions": ", ".join(f"{package} {version}" for package, version in runs[0].fact("versions").items()),
    }


def _questions(protocol: Protocol) -> list[tuple[str, str, str]]:
    headline = protocol.headline
    return [
        ("the headline", headline.system, headline.baseline),
        ("against one epoch, as the paper compares", "rb-ft", "direct-sft-1"),
        ("do the rationales say anything? (or only format and compute)", "rb-ft", "rb-ft-shuffled"),
        ("how much could true captions bring?", "rb-ft-human", "direct-sft-2"),
        ("do wrong captions harm?", "rb-ft-shuffled", "direct-sft-1"),
        ("does a second epoch of labels help?", "direct-sft-2", "direct-sft-1"),
    ]


def _question(study: Study, question: str, system: str, baseline: str) -> dict[str, str]:
    difference = study.difference(system, baseline, METRIC)
    return {
        "question": question,
        "difference": f"{system_title(system)} − {system_title(baseline)}",
        "points": _points(difference),
        "worlds": ", ".join(points(value) for value in difference.repetitions),
    }


def _where(protocol: Protocol, found: Findings) -> str:
    """Heading over the readings: where a gain is lost, if there is none."""
    headline = protocol.headline
    difference = found.study.difference(headline.system, headline.baseline, headline.metric)
    return "What the gain is made of" if difference.excludes_zero and difference.value > 0 else "Where the effect is lost"


def _readings(protocol: Protocol, found: Findings, minority: str) -> list[str]:
    """What the controls say, from the room there is down to the words that stage 1 is taught; the numbers choose the sentences.

    `minority` is the rarest label, whose repaired recall is the paper's effect.
    """
    study, slots, baseline = found.study, found.slots, protocol.headline.baseline

    def compared(system: str, other: str, metric: str = METRIC) -> str:
        difference = study.difference(system, other, metric)
        relation = "cannot be told apart from"
        if difference.excludes_zero:
            relation = "is above" if difference.value > 0 else "is below"
        return f"{system_title(system)} {relation} {system_title(other)} ({_points(difference)})"

    def net(writer: str) -> float:
        return slots[writer].mended - slots[writer].broken

    def habits(writer: str) -> str:
        said = (f"“{word}” is {100 * share:.0f} % of the wrong {name}s" for name, (word, share) in slots[writer].usual_error.items())
        return ", ".join(said)

    recall = f"recall {minority}"
    taught, hardest = slots[TAUGHT], list(slots[TAUGHT].by_severity)[-1]
    return [
        f"*Is there anything to gain?* {compared('rb-ft-human', baseline)}.",
        f"*Do its own rationales say anything, or are they form and steps?* {compared('rb-ft', 'rb-ft-shuffled')}.",
        f"*With one epoch of labels each?* {compared('rb-ft', 'direct-sft-1')}; and {compared('direct-sft-2', 'direct-sft-1')}.",
        f"*Is the rarer class repaired, as in the paper?* In recall of {minority} {compared('rb-ft', 'direct-sft-1', recall)}, "
        f"and {compared('rb-ft', 'direct-sft-2', recall)}.",
        f"*Does stage 1 teach it to see?* Slots named rightly on test clips: {_percent(slots[BASE].right['overall'])} % by the base; "
        f"its own rationales change that by {points(net('rb-ft'))} points ({_percent(slots['rb-ft'].mended)} % mended, "
        f"{_percent(slots['rb-ft'].broken)} % broken), true captions by {points(net('rb-ft-human'))}, shuffled ones by "
        f"{points(net('rb-ft-shuffled'))}.",
        f"*What did the base write for it?* Rationales with {_percent(taught.right['overall'])} % of their slots right, "
        f"{_percent(taught.by_severity[hardest])} % at severities {hardest}; {_percent(taught.passed['all'])} % of them pass the gates. "
        f"Half of the steps have a loss of at most {np.median(found.losses):.2f}, and the mean is {np.mean(found.losses):.2f}. "
        f"Their errors are {_kind_of_errors(taught)}: {habits(TAUGHT)}. After stage 1, on test clips: {habits('rb-ft')}.",
    ]


def _kind_of_errors(scores: SlotScores) -> str:
    """Habits, if one word makes up most of a slot's errors; chance would spread them over the four to seven others."""
    largest = max(share for _, share in scores.usual_error.values())
    return "habits, which training on them confirms" if largest > 0.5 else "spread over many words"


def _learned(study: Study, systems: Sequence[str], num_labels: int) -> str:
    """Whether a task has been learned at all: a comparison of systems that answer one thing always says nothing."""
    learned = [system_title(system) for system in systems if study.estimate(system, METRIC).ci95[0] > 1 / num_labels]
    if not learned:
        return "No system has learned this task: none is above one answer for all, so the rows do not say which is better."
    return f"Above one answer for all: {', '.join(learned)}."


def _difference_sentence(study: Study, system: str, baseline: str, metric: str) -> str:
    difference = study.difference(system, baseline, metric)
    return f"{system_title(system)} − {system_title(baseline)}: {_points(difference)} points of {METRIC_TITLES[metric]} (one world)."


def _system_row(study: Study, system: str) -> dict[str, str]:
    return {"title": system_title(system)} | {metric: _share(study.estimate(system, metric)) for metric in study.metrics}


def _slot_row(scores: SlotScores) -> dict[str, Any]:
    titles = {BASE: "base model", TAUGHT: "base model, training clips (for stage 1)"}
    shares = [*(scores.right[name] for name in SLOT_NAMES), scores.right["overall"], scores.passed["all"]]
    changed = [_percent(share) for share in (scores.mended, scores.broken)] if scores.writer not in titles else ["", ""]
    return {
        "title": titles.get(scores.writer, f"{system_title(scores.writer)}, after stage 1"),
        "cells": [_percent(share) for share in shares],
        "by_severity": [*(_percent(share) for share in scores.by_severity.values()), *changed],
    }


def _minority(world: World) -> str:
    """The rarest label of the test clips."""
    counts = Counter(str(row.label) for row in next(iter(world.predictions.values())))
    return min(counts, key=lambda label: counts[label])


def _class_shares(world: World, labels: Sequence[str]) -> str:
    rows = next(iter(world.predictions.values()))
    counts = Counter(row.label for row in rows)
    return ", ".join(f"{label} {100 * counts[label] / len(rows):.0f} %" for label in labels)


def _curve_figure(curves: dict[str, dict[int, Estimate]]) -> Markup:
    series = [
        Series(system_title(system), tuple((str(count), e.value, e.ci95) for count, e in curve.items())) for system, curve in curves.items()
    ]
    description = "miniature world: balanced accuracy by number of labels, per cent, with 95 % intervals"
    return line_plot(series, description=description, axis="labels")


def _loss_figure(runs: Sequence[Run]) -> Markup:
    plots = []
    for system, stage in _PLOTTED:
        # Stage 1 has fewer steps in a world with more rationales left out; the mean ends with the shortest.
        losses = list(zip(*(_losses(run, system, stage) for run in runs), strict=False))
        curve = LossCurve(system, stage, tuple(range(1, len(losses) + 1)), tuple(float(np.mean(step)) for step in losses))
        plots.append((f"{system_title(system)}, {'stage 1' if stage == 'rationale' else 'labels'}", loss_plot(curve)))
    return beside(plots)


def _losses(run: Run, system: str, stage: Stage) -> Sequence[float]:
    return read_curve(f"{run.stage_folders()[system, stage]}/log.jsonl", system, stage).losses


def _numbers(protocol: Protocol, found: Findings) -> dict[str, Any]:
    def all_of(study: Study) -> dict[str, Any]:
        return {
            system: {metric: dataclasses.asdict(study.estimate(system, metric)) for metric in study.metrics} for system in study.systems
        }

    return {
        "protocol": protocol.model_dump(mode="json"),
        "verdict": verdict(protocol, found.study),
        "differences": {
            f"{system} - {baseline}": dataclasses.asdict(found.study.difference(system, baseline, METRIC))
            for _, system, baseline in _questions(protocol)
        },
        "systems": all_of(found.study),
        "titled_systems": all_of(found.titled_study),
        "slots": [dataclasses.asdict(scores) for scores in found.slots.values()],
        "disagreements": [dataclasses.asdict(row) for row in found.disagreements],
    }


def _share(estimate: Estimate) -> str:
    return f"{_percent(estimate.value)} {_short(estimate.ci95)}"


def _points(difference: Estimate) -> str:
    return f"{points(difference.value)} {interval(difference.ci95)}"


def _short(ends: tuple[float, float]) -> str:
    return f"[{_percent(ends[0])}, {_percent(ends[1])}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
