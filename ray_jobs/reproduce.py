"""The paper's tables and Figure 2 on one's own data. `rbft reproduce table1 --config …`, or this file with the same arguments

Trains and evaluates the systems that a table compares, in the run's own folder (what is there already is used), and lays the authors' rows
beside ours. Several `--config` are several backbones of the same data.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_jobs.api_models import require_keys
from ray_jobs.cli import add_reproduce_arguments
from ray_jobs.evaluate import evaluate_systems, held_out, read_predictions
from ray_jobs.looking import Looks, check_boxes, find_boxes, model_type, read_attention
from ray_jobs.pipeline import run_steps
from ray_jobs.progress import say
from ray_jobs.provenance import inside
from ray_jobs.run import Run, command
from rbft import storage
from rbft.cli import run as run_command
from rbft.config import MaskingConfig, RunConfig, load_config
from rbft.data.tables import read_rows
from rbft.errors import ConfigError
from rbft.evaluation import figure2
from rbft.evaluation.cells import choose_videos, make_cells
from rbft.evaluation.failures import FailureAnalysis, analyse_failures, analysis_json, analysis_text, known_attributes
from rbft.evaluation.figure2 import Figure2, FigureRow, Strip
from rbft.evaluation.imported import read_imported
from rbft.evaluation.looking.boxes import boxes_in_frames
from rbft.evaluation.looking.heatmaps import png, strip
from rbft.evaluation.metrics import Metrics, answered_modes, evaluate_predictions
from rbft.evaluation.report_data import BASELINES, MAIN_SYSTEM
from rbft.evaluation.reproduction import (
    BACKBONES,
    TABLES,
    PaperTable,
    TableSpec,
    answers_note,
    make_table,
    masks_note,
    table_json,
    table_text,
)
from rbft.evaluation.reproduction_page import Made, render_figure2, render_table
from rbft.evaluation.run_clips import decode_clips
from rbft.evaluation.tables import system_title
from rbft.lease import Lease
from rbft.records import Prediction
from rbft.systems import MASK_KINDS, behind_masks

MAX_VALUES = 20
"""A column of attributes with more values says nothing by them."""


def reproduce(arguments: argparse.Namespace) -> int:
    """What the command line asks for; the exit code."""
    reproduce_configs(arguments.what, [load_config(path, arguments.overrides) for path in arguments.config])
    return 0


def reproduce_configs(what: Sequence[str], configs: Sequence[RunConfig]) -> None:
    """Those of `REPRODUCIBLE` that are in `what`, each over all of `configs`.

    Raises `ConfigError` if these are not about the same videos.
    """
    _check_together(what, configs)
    with contextlib.ExitStack() as leases:
        for config in configs:
            leases.enter_context(Lease(config.run_dir, command()))
        for each in dict.fromkeys(what):
            if each == "figure2":
                reproduce_figure2(configs)
            else:
                reproduce_table(TABLES[int(each.removeprefix("table"))], configs)


def _check_together(what: Sequence[str], configs: Sequence[RunConfig]) -> None:
    first = configs[0]
    for names, says in (
        ([config.run_dir for config in configs], "share the folder {}; give each run a name of its own"),
        ([backbone(config) for config in configs], "have models called {}; rows are told apart by the names of the models' folders"),
    ):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ConfigError(f"two --config {says.format(twice[0])}")
    for config in configs[1:]:
        if (config.task.labels, config.data) != (first.task.labels, first.data):
            raise ConfigError(f"{config.name} and {first.name} have other data or labels; rows of one table are about the same videos")
        if not {"table5", "figure2"}.isdisjoint(what) and config.evaluation.masking != first.evaluation.masking:
            raise ConfigError(f"{config.name} and {first.name} differ in evaluation.masking; rows of one table have the same boxes")


def check_same_videos(runs: Sequence[Run]) -> None:
    """Raise `ConfigError` unless all runs test on the same videos: the seed may draw the split, and `evaluation.split` chooses one."""
    wanted, *others = ({(example.id, example.label) for example in held_out(run)} for run in runs)
    for run, found in zip(runs[1:], others, strict=True):
        if found != wanted:
            raise ConfigError(
                f"{run.config.name} and {runs[0].config.name} test on other videos, e.g. {min(found ^ wanted)[0]}; give both the same "
                "seed and evaluation.split"
            )


def reproduce_table(spec: TableSpec, configs: Sequence[RunConfig]) -> PaperTable:
    """Run what is missing for a table, write it into each run's folder and print it."""
    runs = _finished(configs, f"table{spec.number}", spec.systems, keeps_others=spec.compares_methods, needs_boxes=bool(spec.masked))
    for run in runs if spec.masked else ():
        evaluate_systems([(run, system) for system in spec.masked])
    table = lay_out(spec, configs[0].evaluation.masking, runs)
    analyses = {_heading(run, runs): _failures(run) for run in runs} if spec.compares_methods else {}
    _write(runs, spec, table, analyses)
    return table


def lay_out(spec: TableSpec, masking: MaskingConfig, runs: Sequence[Run]) -> PaperTable:
    """The table of `runs` in which everything is evaluated; their masks are those of `masking`."""
    first = runs[0]
    results = {backbone(run.config): {system: _metrics(read_predictions(run, system), run) for system in spec.methods} for run in runs}
    others = other_predictions(first, spec) if spec.compares_methods else {}
    remarks = _seeds_remarks(first)
    if spec.masked:
        rows = {kind: read_predictions(first, behind_masks(MAIN_SYSTEM, kind)) for kind in MASK_KINDS}
        remarks.append(masks_note(rows["object"], rows["random"], masking))
    return make_table(
        spec,
        _dataset(first),
        first.config.task.labels,
        results,
        {name: _metrics(predictions, first) for name, predictions in others.items()},
        paper_models={backbone(run.config): BACKBONES[kind] for run in runs if (kind := model_type(run)) in BACKBONES},
        notes={name: answers_note(predictions) for name, predictions in others.items()},
        remarks=remarks,
    )


def other_predictions(run: Run, spec: TableSpec) -> dict[str, list[Prediction]]:
    """Of the systems that are no backbone's: those made elsewhere, API models, video classifiers."""
    imported = read_imported(run.fact("imported", {}), held_out(run))
    asked = (name for name in run.config.evaluation.all_systems if name not in spec.methods)
    return imported | {name: read_predictions(run, name) for name in asked}


def _seeds_remarks(run: Run) -> list[str]:
    seeds = run.config.training.seeds
    if not seeds:
        return []
    named = ", ".join(map(str, seeds))
    return [f"Of seed {run.config.seed} alone. What other seeds give (training.seeds: {named}) is in the report of `rbft pipeline`."]


def reproduce_figure2(configs: Sequence[RunConfig]) -> Figure2:
    """Run what is missing for the figure, write it into each run's folder and print it."""
    rows: dict[str, FigureRow] = {}
    differences, strips = {}, []
    runs = _finished(configs, "figure2", figure2.SYSTEMS, needs_boxes=True)
    for run in runs:
        prefix = f"{backbone(run.config)}: " if len(runs) > 1 else ""
        predictions = {system: read_predictions(run, system) for system in figure2.SYSTEMS}
        cells = make_cells(predictions, run.config.task.labels)
        shown = choose_videos(cells, MAIN_SYSTEM, run.config.evaluation.attention.num_shown)
        looks = read_attention(run, figure2.SYSTEMS, shown)
        titles = {system: prefix + system_title(system) for system in looks}
        rows |= figure2.make_rows({titles[system]: (each.here, each.elsewhere) for system, each in looks.items()}, run.config.seed)
        baseline, system = figure2.SYSTEMS
        name = f"{titles[system]} − {system_title(baseline)}"
        differences[name] = figure2.difference(looks[system].here, looks[baseline].here, run.config.seed)
        strips += _strips(run, shown, looks, predictions, titles)
    title = f"Figure 2: what the models look at ({_dataset(runs[0])})"
    evaluation = configs[0].evaluation
    figure = Figure2(
        title, rows, differences, figure2.how_read(evaluation.attention), figure2.whose_boxes(evaluation.masking), tuple(strips)
    )
    print(f"\n{figure2.figure_text(figure)}\n")
    for run in runs:
        _keep(run, "figure2", render_figure2(figure, made_of(runs)), figure2.figure_json(figure))
    return figure


def _strips(
    run: Run, shown: Sequence[str], looks: Mapping[str, Looks], predictions: Mapping[str, Sequence[Prediction]], titles: Mapping[str, str]
) -> list[Strip]:
    by_id = {example.id: example for example in held_out(run)}
    config = run.config
    clips = decode_clips([by_id[id_] for id_ in shown], config.video, config.engine.decode_workers, lambda clip: clip)
    answers = {system: {row.id: row for row in rows} for system, rows in predictions.items()}
    strips = []
    for id_ in shown:
        if id_ not in clips or any(id_ not in each.maps for each in looks.values()):
            continue  # an error row
        boxes = boxes_in_frames(looks[figure2.SYSTEMS[0]].boxes[id_], clips[id_], run.config.evaluation.masking.num_objects)
        maps = {f"{titles[system]}: {answers[system][id_].predicted}": each.maps[id_] for system, each in looks.items()}
        picture = base64.b64encode(png(strip(clips[id_], maps, boxes))).decode()
        strips.append(Strip(id_, f"{id_}, {by_id[id_].label}", picture))
    return strips


def _finished(
    configs: Sequence[RunConfig], what: str, systems: tuple[str, ...], *, keeps_others: bool = False, needs_boxes: bool = False
) -> list[Run]:
    """The runs of `configs` with `systems` trained and evaluated, the first also with the other models if wanted, and with the same boxes.

    What can be refused is refused before anything is trained.
    """
    runs = [_open(config, systems, keeps_others=keeps_others and number == 0) for number, config in enumerate(configs)]
    check_same_videos(runs)
    require_keys(runs[0])
    if needs_boxes:
        check_boxes(runs[0])
    for run in runs:
        say(f"reproduce {what}: {run.config.name}, {', '.join(systems)}")
        run_steps([run])
    if needs_boxes:
        find_boxes(runs[0])
        for run in runs[1:]:
            run.change_evaluation(masking=runs[0].config.evaluation.masking)
    return runs


def _open(config: RunConfig, systems: tuple[str, ...], *, keeps_others: bool) -> Run:
    others = {} if keeps_others else {"api_models": (), "video_classifiers": ()}
    return Run(config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"systems": systems, **others})}))


def backbone(config: RunConfig) -> str:
    """What the base model is called: its folder's name, or its repository's."""
    return config.model.path.rstrip("/").rpartition("/")[2].partition("@")[0]


def _dataset(run: Run) -> str:
    return run.config.data.title or run.config.name


def _heading(run: Run, runs: Sequence[Run]) -> str:
    """What a part of the page about one of `runs` is about."""
    return f"{_dataset(run)}, {backbone(run.config)}" if len(runs) > 1 else _dataset(run)


def _metrics(predictions: Sequence[Prediction], run: Run) -> Metrics:
    """By label likelihood, or by text of a system that tells no likelihoods."""
    return evaluate_predictions(predictions, run.config.task.labels, answered_modes(predictions)[0], seed=run.config.seed)


def _failures(run: Run) -> FailureAnalysis:
    """RB-FT against the baseline with as much training."""
    attributes = known_attributes(held_out(run))
    if run.config.evaluation.attributes is not None:
        attributes |= read_attributes(run.config.evaluation.attributes)
    names = (MAIN_SYSTEM, BASELINES[0])
    return analyse_failures(*(read_predictions(run, name) for name in names), names=names, attributes=attributes)


def read_attributes(path: str) -> dict[str, dict[str, set[str]]]:
    """Column -> value -> ids of the table in `path`, of columns with few values; raises `ManifestError` if it has no column `id`."""
    found: dict[str, dict[str, set[str]]] = {}
    for row in read_rows(Path(path)):
        id_ = row.required("id")
        for name in sorted(row.cells.keys() - {"id"}):
            if (value := row.text(name)) is not None:
                found.setdefault(name, {}).setdefault(value, set()).add(id_)
    return {name: dict(sorted(values.items())) for name, values in found.items() if len(values) <= MAX_VALUES}


def _write(runs: Sequence[Run], spec: TableSpec, table: PaperTable, analyses: Mapping[str, FailureAnalysis]) -> None:
    page = render_table(table, analyses, made_of(runs))
    content = table_json(table) | {"failures": {name: analysis_json(analysis) for name, analysis in analyses.items()}}
    print(f"\n{table_text(table)}")
    for name, analysis in analyses.items():
        print(f"\nWhere {analysis.system} and {analysis.baseline} differ ({name}):\n\n{analysis_text(analysis)}")
    print()
    for run in runs:
        _keep(run, f"table{spec.number}", page, content)


def made_of(runs: Sequence[Run]) -> dict[str, Made]:
    """Run -> how it was made, for the page."""
    return {run.config.name: _made(run) for run in runs}


def _made(run: Run) -> Made:
    known = {"folder": run.layout.root, "commit": run.fact("commit"), "seed": run.config.seed}
    facts = {name: str(value) for name, value in known.items() if value is not None}
    artifacts = {name: inside(run, str(uri)) for name, uri in run.fact("artifacts", {}).items()}
    return Made(command(), facts, run.fact("versions", {}), artifacts)


def _keep(run: Run, what: str, page: str, content: dict[str, Any]) -> None:
    """Write the page and what it says as JSON, with where it comes from, into the run's folder."""
    path = run.layout.reproduction(what)
    provenance = {"command": command(), **{name: run.fact(name) for name in ("commit", "seed", "versions", "artifacts")}}
    storage.write_bytes(f"{path}.html", page.encode())
    storage.write_json(f"{path}.json", content | {"provenance": provenance})
    print(f"{what}: {path}.html")


if __name__ == "__main__":
    main_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_reproduce_arguments(main_parser)
    sys.exit(run_command(lambda: reproduce(main_parser.parse_args())))
