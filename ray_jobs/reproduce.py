"""The paper's tables on one's own data. `rbft reproduce table1 --config …`, or `python ray_jobs/reproduce.py table1 --config …`

Trains and evaluates the systems that a table compares, in the run's own folder (what is there already is used), and lays the authors' rows
beside ours. Several `--config` are several backbones of the same data.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ray_jobs.cli import add_reproduce_arguments
from ray_jobs.evaluate import held_out, read_predictions
from ray_jobs.pipeline import run_steps
from ray_jobs.progress import say
from ray_jobs.run import Run, command
from rbft import storage
from rbft.cli import run as run_command
from rbft.config import RunConfig, load_config
from rbft.data.tables import read_rows
from rbft.errors import ConfigError
from rbft.evaluation.failures import FailureAnalysis, analyse_failures, analysis_json, analysis_text, known_attributes
from rbft.evaluation.metrics import Metrics, evaluate_predictions
from rbft.evaluation.report_data import BASELINES, MAIN_SYSTEM
from rbft.evaluation.reproduction import BACKBONES, TABLES, PaperTable, TableSpec, make_table, table_json, table_text
from rbft.evaluation.reproduction_page import render_reproduction
from rbft.lease import Lease
from rbft.model_folder import require_model_folder

MAX_VALUES = 20
"""A column of attributes with more values says nothing by them."""


def reproduce(arguments: argparse.Namespace) -> int:
    """What the command line asks for; the exit code."""
    configs = [load_config(path, arguments.overrides) for path in arguments.config]
    _check_together(configs)
    with contextlib.ExitStack() as leases:
        for config in configs:
            leases.enter_context(Lease(config.run_dir, command()))
        for what in dict.fromkeys(arguments.what):
            reproduce_table(TABLES[int(what.removeprefix("table"))], configs)
    return 0


def _check_together(configs: Sequence[RunConfig]) -> None:
    folders = [config.run_dir for config in configs]
    if len(set(folders)) < len(folders):
        raise ConfigError(f"two --config share the folder {folders[0]}; give each run a name of its own")
    for config in configs[1:]:
        if (config.task.labels, config.data) != (configs[0].task.labels, configs[0].data):
            raise ConfigError(f"{config.name} and {configs[0].name} have other data or labels; rows of one table are about the same videos")


def reproduce_table(spec: TableSpec, configs: Sequence[RunConfig]) -> PaperTable:
    """Run what is missing for a table, write it into each run's folder and print it."""
    runs = []
    for config in configs:
        evaluation = config.evaluation.model_copy(update={"systems": spec.systems})
        run = Run(config.model_copy(update={"evaluation": evaluation}))
        say(f"reproduce table{spec.number}: {run.config.name}, {', '.join(spec.systems)}")
        run_steps([run])
        runs.append(run)
    first = runs[0].config
    results = {_backbone(run): {system: _metrics(run, system) for system in spec.systems} for run in runs}
    table = make_table(spec, first.data.title or first.name, first.task.labels, results, {})
    analyses = {_backbone(run): _failures(run, spec) for run in runs}
    _write(runs, spec, table, {name: analysis for name, analysis in analyses.items() if analysis is not None})
    return table


def _backbone(run: Run) -> str:
    """The paper's name of the model, or the folder's of one that the paper does not have."""
    folder = require_model_folder(run.config.model.path)
    return BACKBONES.get(folder.model_type, folder.path.name)


def _metrics(run: Run, system: str) -> Metrics:
    return evaluate_predictions(read_predictions(run, system), run.config.task.labels, seed=run.config.seed)


def _failures(run: Run, spec: TableSpec) -> FailureAnalysis | None:
    """RB-FT against the baseline with as much training, where the table has both."""
    baseline = next((name for name in BASELINES if name in spec.systems), None)
    if baseline is None or MAIN_SYSTEM not in spec.systems:
        return None
    attributes = known_attributes(held_out(run))
    if run.config.evaluation.attributes is not None:
        attributes |= read_attributes(run.config.evaluation.attributes)
    names = (MAIN_SYSTEM, baseline)
    return analyse_failures(*(read_predictions(run, name) for name in names), names=names, attributes=attributes)


def read_attributes(path: str) -> dict[str, dict[str, str]]:
    """Column -> id -> value of the table in `path`, of columns with few values; raises `ManifestError` if it has no column `id`."""
    found: dict[str, dict[str, str]] = {}
    for row in read_rows(Path(path)):
        id_ = row.required("id")
        for name in row.cells.keys() - {"id"}:
            if (value := row.text(name)) is not None:
                found.setdefault(name, {})[id_] = value
    return {name: values for name, values in sorted(found.items()) if len(set(values.values())) <= MAX_VALUES}


def _write(runs: Sequence[Run], spec: TableSpec, table: PaperTable, analyses: Mapping[str, FailureAnalysis]) -> None:
    page = render_reproduction(table, analyses)
    content = table_json(table) | {"failures": {name: analysis_json(analysis) for name, analysis in analyses.items()}}
    print(f"\n{table_text(table)}")
    for name, analysis in analyses.items():
        print(f"\nWhere {analysis.system} and {analysis.baseline} differ ({name}):\n\n{analysis_text(analysis)}")
    print()
    for run in runs:
        path = run.layout.reproduction(f"table{spec.number}")
        storage.write_bytes(f"{path}.html", page.encode())
        storage.write_json(f"{path}.json", content | {"command": command(), "commit": run.fact("commit"), "versions": run.fact("versions")})
        print(f"table {spec.number}: {path}.html")


if __name__ == "__main__":
    main_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_reproduce_arguments(main_parser)
    sys.exit(run_command(lambda: reproduce(main_parser.parse_args())))
