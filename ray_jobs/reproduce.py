"""The paper's tables and Figure 2 on one's own data. `rbft reproduce table1 --config …`, or this file with the same arguments

Trains and evaluates the systems that a table compares, in the run's own folder (what is there already is used), and lays the authors' rows
beside ours. Several `--config` are several backbones of the same data.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_jobs.cli import add_reproduce_arguments
from ray_jobs.evaluate import evaluate_systems, held_out, read_predictions
from ray_jobs.looking import Looks, find_boxes, read_attention, require_place_for_boxes
from ray_jobs.pipeline import run_steps
from ray_jobs.progress import say
from ray_jobs.run import Run, command
from rbft import storage
from rbft.cli import run as run_command
from rbft.config import RunConfig, load_config
from rbft.data.tables import read_rows
from rbft.errors import ConfigError
from rbft.evaluation import figure2
from rbft.evaluation.cells import choose_videos, make_cells
from rbft.evaluation.failures import FailureAnalysis, analyse_failures, analysis_json, analysis_text, known_attributes
from rbft.evaluation.figure2 import Figure2, FigureRow, Strip
from rbft.evaluation.looking.boxes import boxes_in_frames
from rbft.evaluation.looking.heatmaps import png, strip
from rbft.evaluation.metrics import Metrics, answered_modes, evaluate_predictions
from rbft.evaluation.report_data import BASELINES, MAIN_SYSTEM
from rbft.evaluation.reproduction import BACKBONES, TABLES, PaperTable, TableSpec, make_table, table_json, table_text
from rbft.evaluation.reproduction_page import render_figure2, render_table
from rbft.evaluation.run_clips import decode_clips
from rbft.evaluation.tables import system_title
from rbft.lease import Lease
from rbft.model_folder import require_model_folder
from rbft.model_store import local_model
from rbft.records import Prediction

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
    _check_together(configs)
    with contextlib.ExitStack() as leases:
        for config in configs:
            leases.enter_context(Lease(config.run_dir, command()))
        for each in dict.fromkeys(what):
            if each == "figure2":
                reproduce_figure2(configs)
            else:
                reproduce_table(TABLES[int(each.removeprefix("table"))], configs)


def _check_together(configs: Sequence[RunConfig]) -> None:
    folders = [config.run_dir for config in configs]
    if len(set(folders)) < len(folders):
        raise ConfigError(f"two --config share the folder {folders[0]}; give each run a name of its own")
    for config in configs[1:]:
        if (config.task.labels, config.data) != (configs[0].task.labels, configs[0].data):
            raise ConfigError(f"{config.name} and {configs[0].name} have other data or labels; rows of one table are about the same videos")


def reproduce_table(spec: TableSpec, configs: Sequence[RunConfig]) -> PaperTable:
    """Run what is missing for a table, write it into each run's folder and print it."""
    for config in configs if spec.masked else ():
        require_place_for_boxes(config)
    runs = [
        _finished(config, f"table{spec.number}", spec.systems, keeps_others=spec.compares_methods and number == 0)
        for number, config in enumerate(configs)
    ]
    for run in runs:
        if spec.masked:
            find_boxes(run)
            evaluate_systems([(run, system) for system in spec.masked])
    first = runs[0].config
    results = {_backbone(run): {system: _metrics(run, system) for system in spec.methods} for run in runs}
    others = {name: _metrics(runs[0], name) for name in first.evaluation.all_systems if name not in spec.methods}
    table = make_table(spec, first.data.title or first.name, first.task.labels, results, others)
    analyses = {_backbone(run): _failures(run) for run in runs} if spec.compares_methods else {}
    _write(runs, spec, table, analyses)
    return table


def reproduce_figure2(configs: Sequence[RunConfig]) -> Figure2:
    """Run what is missing for the figure, write it into each run's folder and print it."""
    for config in configs:
        require_place_for_boxes(config)
    rows: dict[str, FigureRow] = {}
    differences, strips = {}, []
    runs = [_finished(config, "figure2", figure2.SYSTEMS, keeps_others=False) for config in configs]
    for run in runs:
        find_boxes(run)
        prefix = f"{_backbone(run)}: " if len(runs) > 1 else ""
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
    first = runs[0].config
    title = f"Figure 2: what the models look at ({first.data.title or first.name})"
    evaluation = first.evaluation
    figure = Figure2(
        title, rows, differences, figure2.how_read(evaluation.attention), figure2.whose_boxes(evaluation.masking), tuple(strips)
    )
    print(f"\n{figure2.figure_text(figure)}\n")
    for run in runs:
        _keep(run, "figure2", render_figure2(figure), figure2.figure_json(figure))
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


def _finished(config: RunConfig, what: str, systems: tuple[str, ...], *, keeps_others: bool) -> Run:
    """The run of `config` with `systems` trained and evaluated; with the other models it asks only if wanted."""
    others = {} if keeps_others else {"api_models": (), "video_classifiers": ()}
    run = Run(config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"systems": systems, **others})}))
    say(f"reproduce {what}: {config.name}, {', '.join(systems)}")
    run_steps([run])
    return run


def _backbone(run: Run) -> str:
    """The paper's name of the model, or the folder's of one that the paper does not have."""
    folder = require_model_folder(local_model(run.config.model.path))
    return BACKBONES.get(folder.model_type, folder.path.name)


def _metrics(run: Run, system: str) -> Metrics:
    """By label likelihood, or by text of a system that tells no likelihoods."""
    predictions = read_predictions(run, system)
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
    page = render_table(table, analyses)
    content = table_json(table) | {"failures": {name: analysis_json(analysis) for name, analysis in analyses.items()}}
    print(f"\n{table_text(table)}")
    for name, analysis in analyses.items():
        print(f"\nWhere {analysis.system} and {analysis.baseline} differ ({name}):\n\n{analysis_text(analysis)}")
    print()
    for run in runs:
        _keep(run, f"table{spec.number}", page, content)


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
