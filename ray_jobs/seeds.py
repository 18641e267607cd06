"""One run trained with several seeds (`training.seeds`): means over them, and intervals that cover seeds and test clips alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from ray_jobs.evaluate import read_predictions
from ray_jobs.run import Run
from rbft.evaluation.metrics import METRICS
from rbft.evaluation.report_data import BASELINES, MAIN_SYSTEM, ReportSection
from rbft.evaluation.study import Estimate, Study, make_study
from rbft.evaluation.tables import METRIC_TITLES, interval, percent, points, system_title


def study_seeds(runs: Sequence[Run]) -> Study | None:
    """The study of the systems that are trained, a repetition a seed; None for one seed. `runs` are `Run.all_seeds()` of a finished run."""
    if len(runs) < 2:
        return None
    systems = runs[1].config.evaluation.all_systems
    repetitions = [{system: read_predictions(run, system) for system in systems} for run in runs]
    main = runs[0].config
    return make_study(repetitions, main.task.labels, seed=main.seed, same_clips=True)


def seeds_summary(study: Study, runs: Sequence[Run]) -> dict[str, Any]:
    """The `seeds` part of summary.json: the seeds, and for each system and difference the metrics' means, intervals and single values."""
    return {
        "seeds": [run.config.seed for run in runs],
        "systems": {system: {metric: _plain(study.estimate(system, metric)) for metric in METRICS} for system in study.systems},
        "differences": {
            f"{MAIN_SYSTEM} - {baseline}": {metric: _plain(study.difference(MAIN_SYSTEM, baseline, metric)) for metric in METRICS}
            for baseline in _baselines(study)
        },
    }


def seeds_section(study: Study, runs: Sequence[Run]) -> ReportSection:
    """The same as a table of the report."""
    rows = [(system_title(system), [_shares(study.estimate(system, metric)) for metric in METRICS]) for system in study.systems]
    for baseline in _baselines(study):
        cells = [_points(study.difference(MAIN_SYSTEM, baseline, metric)) for metric in METRICS]
        rows.append((f"{system_title(MAIN_SYSTEM)} − {system_title(baseline)}, points", cells))
    head = _row("th", "", [METRIC_TITLES[metric] for metric in METRICS])
    text = Markup(
        "<p>Means over the seeds {}, with 95 % intervals of a bootstrap that draws seeds and then test clips, the same for all seeds. "
        "Few seeds say little about what other seeds would give. By label likelihood; what follows below is of seed {}. The predictions of "
        'all seeds are under <a href="#sources">Sources</a>.</p>'
    ).format(", ".join(str(run.config.seed) for run in runs), runs[0].config.seed)
    body = Markup("").join(_row("td", title, cells) for title, cells in rows)
    return ReportSection(f"Over {len(runs)} seeds", text + Markup("<table>") + head + body + Markup("</table>"))


def _baselines(study: Study) -> list[str]:
    return [baseline for baseline in BASELINES if baseline in study.systems] if MAIN_SYSTEM in study.systems else []


def _plain(estimate: Estimate) -> dict[str, Any]:
    return {"mean": estimate.value, "ci95": list(estimate.ci95), "by_seed": list(estimate.repetitions)}


def _shares(estimate: Estimate) -> str:
    return f"{percent(estimate.value)} {interval(estimate.ci95)}"


def _points(estimate: Estimate) -> str:
    return f"{points(estimate.value)} {interval(estimate.ci95)}"


def _row(tag: str, title: str, cells: Sequence[str]) -> Markup:
    filled = Markup("").join(Markup(f"<{tag}>{{}}</{tag}>").format(cell) for cell in cells)
    return Markup("<tr><th>{}</th>").format(title) + filled + Markup("</tr>")
