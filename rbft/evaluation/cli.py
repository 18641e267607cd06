"""Verbs about predictions: `rbft compare` and `rbft predictions import|export|calibrate`. They read a run's files and need no engine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rbft.evaluation.locate import FoundPredictions
    from rbft.evaluation.side_by_side import SideBySide
    from rbft.records import Example

_WHERE = "RUN_FOLDER/SYSTEM, e.g. runs/smarthome/rb-ft; or a folder or Parquet file of predictions"


def register(subparsers: Any, add_run_arguments: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the two verbs; `add_run_arguments` gives a parser `--config` and `--set`."""
    _add_compare(subparsers)
    parser = subparsers.add_parser("predictions", help="bring predictions in from elsewhere, take them out, calibrate them")
    actions = parser.add_subparsers(title="what to do", metavar="ACTION", required=True)
    _add_import(actions, add_run_arguments)
    _add_export(actions)
    _add_calibrate(actions)


def _add_compare(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "compare", help="two systems on the same videos: metrics, difference, tests, and the videos that changed"
    )
    parser.add_argument("system", help=_WHERE)
    parser.add_argument("baseline", help="what it is compared with, said in the same way")
    parser.add_argument("--labels", metavar="A,B,…", help="the task's labels in order, where both are files that do not say")
    parser.add_argument(
        "--mode", choices=("likelihood", "generate"), help="how answers are read (default: by likelihood where there are some)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the resamples (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON, with the ids of all videos that changed")
    parser.add_argument("--html", metavar="FILE", help="also write a page with plots, matrices and the videos that changed")
    parser.add_argument(
        "--videos", type=int, default=12, metavar="N", help="videos that the page shows of each kind of change (default: %(default)s)"
    )
    parser.set_defaults(handler=_compare)


def _compare(arguments: argparse.Namespace) -> None:
    from rbft.evaluation.locate import find_predictions
    from rbft.evaluation.side_by_side import side_by_side, side_by_side_json, side_by_side_text

    one, other = find_predictions(arguments.system), find_predictions(arguments.baseline)
    names = (one.name, other.name) if one.name != other.name else (arguments.system, arguments.baseline)
    found = side_by_side(
        one.predictions, other.predictions, _labels(arguments.labels, one, other), names=names, mode=arguments.mode, seed=arguments.seed
    )
    if arguments.html is not None:
        _write_page(arguments, found, one, other)
    if arguments.json:
        print(json.dumps(side_by_side_json(found), indent=2, ensure_ascii=False))
    else:
        print(side_by_side_text(found))


def _write_page(arguments: argparse.Namespace, found: SideBySide, one: FoundPredictions, other: FoundPredictions) -> None:
    from rbft.evaluation.comparison_page import changed_videos, render_comparison, write_comparison
    from rbft.evaluation.run_clips import read_run_clips

    changed = changed_videos(found, one.predictions, other.predictions, limit=arguments.videos)
    run = one.run or other.run
    clips = read_run_clips(run, [id_ for kind in changed for id_ in kind.shown]) if run is not None else {}
    write_comparison(render_comparison(found, one, other, changed, clips, seed=arguments.seed), arguments.html)
    print(f"wrote {arguments.html}", file=sys.stderr)


def _labels(given: str | None, one: FoundPredictions, other: FoundPredictions) -> tuple[str, ...]:
    """The labels that are given, or a run's, or of files all that occur."""
    if given is not None:
        return tuple(label.strip() for label in given.split(","))
    if one.run is None and other.run is not None:
        one, other = other, one
    return one.labels if one.run is not None else (*one.labels, *(label for label in other.labels if label not in one.labels))


def _add_import(actions: Any, add_run_arguments: Callable[[argparse.ArgumentParser], None]) -> None:
    parser = actions.add_parser("import", help="predictions made elsewhere (CSV, TSV, JSON, JSONL, Parquet) into a run; strict about ids")
    parser.add_argument("file", help="one row a video: id, predicted, and if there are any probability_<label> for every label")
    add_run_arguments(parser)
    parser.add_argument("--name", required=True, metavar="NAME", help="what the system is called in the report, e.g. videomae")
    parser.add_argument("--id-column", default="id", metavar="COLUMN", help="(default: %(default)s)")
    parser.add_argument("--answer-column", default="predicted", metavar="COLUMN", help="(default: %(default)s)")
    parser.set_defaults(handler=_import)


def _import(arguments: argparse.Namespace) -> None:
    from rbft.config import load_config
    from rbft.evaluation.import_predictions import import_predictions
    from rbft.evaluation.imported import add_to_run
    from rbft.evaluation.metrics import evaluate_predictions
    from rbft.evaluation.tables import table_text

    config = load_config(arguments.config, arguments.overrides)
    examples = [example for example in _manifest(f"{config.run_dir}/manifest.parquet").values() if example.split == config.evaluation.split]
    path = Path(arguments.file)
    predictions = import_predictions(path, examples, config.task, id_column=arguments.id_column, answer_column=arguments.answer_column)
    folder = add_to_run(config.run_dir, arguments.name, predictions, path)
    print(table_text({arguments.name: evaluate_predictions(predictions, config.task.labels, seed=config.seed)}))
    print(f"wrote {len(predictions)} predictions to {folder}; `rbft pipeline` takes {arguments.name} into the report")


def _add_export(actions: Any) -> None:
    parser = actions.add_parser("export", help="predictions as CSV, or the least certain ones for Label Studio or FiftyOne")
    parser.add_argument("predictions", help=_WHERE)
    parser.add_argument("--format", choices=("csv", "label-studio", "fiftyone"), default="csv", help="(default: %(default)s)")
    parser.add_argument("--out", required=True, metavar="FILE", help="for Label Studio, its labelling interface is written beside, as .xml")
    parser.add_argument("--below", type=float, metavar="SHARE", help="only with less confidence than this (0 to 1), or without an answer")
    parser.add_argument("--wrong", action="store_true", help="only mistakes")
    parser.add_argument("--limit", type=int, metavar="N", help="only the N least certain")
    parser.add_argument("--manifest", metavar="FILE", help="where the videos are (default: the run's manifest.parquet)")
    parser.add_argument("--replace", metavar="FOLDER=URL", help="how Label Studio reaches the videos: what to write in place of FOLDER")
    parser.set_defaults(handler=_export)


def _export(arguments: argparse.Namespace) -> None:
    from rbft import storage
    from rbft.errors import ConfigError
    from rbft.evaluation import worklist
    from rbft.evaluation.locate import find_predictions
    from rbft.evaluation.metrics import answered_modes

    found = find_predictions(arguments.predictions)
    examples = _manifest(arguments.manifest or (f"{found.run}/manifest.parquet" if found.run else None))
    mode = answered_modes(found.predictions)[0]
    rows = worklist.least_certain(found.predictions, mode, below=arguments.below, wrong_only=arguments.wrong, limit=arguments.limit)
    if arguments.format == "csv":
        storage.write_bytes(arguments.out, worklist.predictions_csv(rows, examples, found.labels, mode))
    elif arguments.format == "fiftyone":
        storage.write_json(arguments.out, worklist.fiftyone_samples(rows, examples, found.name, mode))
    else:
        folder, equals, url = (arguments.replace or "=").partition("=")
        if not equals:
            raise ConfigError(f"--replace {arguments.replace}: write FOLDER=URL, e.g. /data/smarthome/videos=https://example.org/videos")
        prefix = (folder, url) if arguments.replace else None
        storage.write_json(arguments.out, worklist.label_studio_tasks(rows, examples, found.name, mode, url_prefix=prefix))
        interface = f"{arguments.out.removesuffix('.json')}.xml"
        storage.write_bytes(interface, worklist.label_studio_interface(found.labels).encode())
        print(f"the labelling interface is {interface}")
    print(f"wrote {len(rows)} of {len(found.predictions)} predictions of {found.name} to {arguments.out}")


def _add_calibrate(actions: Any) -> None:
    parser = actions.add_parser("calibrate", help="fit temperature and threshold on validation predictions; apply them to others")
    parser.add_argument("validation", help=f"predictions for the validation split: {_WHERE}")
    parser.add_argument("--manifest", metavar="FILE", help="which says what the validation split is (default: the run's manifest.parquet)")
    parser.add_argument("--out", required=True, metavar="FILE", help="the calibration, as JSON")
    parser.add_argument("--apply", metavar="PREDICTIONS", help="to calibrate these predictions, said in the same way")
    parser.add_argument("--apply-out", metavar="FILE.parquet", help="where the calibrated predictions go")
    parser.set_defaults(handler=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> None:
    from rbft import storage
    from rbft.errors import ConfigError
    from rbft.evaluation.calibration import apply_calibration, fit_calibration
    from rbft.evaluation.locate import find_predictions
    from rbft.evaluation.predictions import write_predictions
    from rbft.evaluation.side_by_side import side_by_side, side_by_side_text

    if (arguments.apply is None) != (arguments.apply_out is None):
        raise ConfigError("--apply and --apply-out go together: what to calibrate, and where the result goes")
    found = find_predictions(arguments.validation)
    manifest = _manifest(arguments.manifest or (f"{found.run}/manifest.parquet" if found.run else None))
    fitted = fit_calibration(found.predictions, list(manifest.values()), found.labels)
    storage.write_json(arguments.out, fitted.model_dump(mode="json"))
    print(
        f"temperature {fitted.temperature:.4f}, threshold {'none' if fitted.threshold is None else f'{fitted.threshold:.4f}'}, from "
        f"{fitted.num_clips} validation videos: log-loss {fitted.log_loss_before:.4f} -> {fitted.log_loss_after:.4f} there"
    )
    if arguments.apply is not None:
        before = find_predictions(arguments.apply)
        after = apply_calibration(before.predictions, fitted)
        write_predictions(after, arguments.apply_out)
        print(side_by_side_text(side_by_side(after, before.predictions, fitted.labels, names=("calibrated", before.name))))


def _manifest(uri: str | None) -> dict[str, Example]:
    """Id -> example."""
    from rbft.data.manifest import read_manifest
    from rbft.errors import ConfigError

    if uri is None:
        raise ConfigError("lone predictions do not say what their videos are; give --manifest")
    return {example.id: example for example in read_manifest(uri)}
