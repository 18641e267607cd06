"""The `rbft` command. Its verbs are collected from the entry-point group `rbft.commands`; those of the library itself stand here.

An entry point is a function `register(subparsers)` that adds parsers and sets `handler` on each: a function of the parsed arguments that
returns an exit code, or None for 0. `add_run_arguments` and `read_run` give a verb `--config` and `--set`.

Exit codes: 0 done; 1 looked and found something wrong (doctor, validate); 2 an error, one line on stderr; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import TYPE_CHECKING, Any

from rbft.errors import ConfigError, RBFTError

if TYPE_CHECKING:
    from rbft.config import RunConfig

GROUP = "rbft.commands"
Subparsers = Any
"""argparse's `_SubParsersAction`, which has no public name."""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command line `argv` (default: the process's own)."""

    def command() -> int | None:
        parser, problems = build_parser()
        for problem in problems:
            print(problem, file=sys.stderr)
        arguments = parser.parse_args(argv)
        code: int | None = arguments.handler(arguments)
        return code

    return run(command)


def run(command: Callable[[], int | None]) -> int:
    """The exit code of `command()`; one of our errors becomes one line on stderr. What every entry script ends in."""
    try:
        return command() or 0
    except RBFTError as error:
        print(f"error[{error.code}]: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `rbft plan | head`
        sys.stderr.close()
        return 0


def build_parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser with every verb that is installed, and a line for each group of verbs that cannot be loaded."""
    try:
        installed = version("rbft")
    except PackageNotFoundError:
        raise RBFTError(
            "rbft is not installed in this environment, and its verbs are found through the installation; run `make setup`"
        ) from None
    parser = argparse.ArgumentParser(prog="rbft", description="Rationale-bootstrapped fine-tuning for video classification.")
    parser.add_argument("--version", action="version", version=f"rbft {installed}")
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    problems = []
    for entry_point in sorted(entry_points(group=GROUP), key=lambda entry_point: entry_point.value):
        try:
            register_verbs = entry_point.load()
        except ImportError as error:
            # `rbft doctor` must run where Ray does not.
            problems.append(f"rbft: the verbs of {entry_point.value} are missing, as it cannot be imported ({error}); see `rbft doctor`")
        else:
            register_verbs(subparsers)
    return parser, problems


def add_run_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add `--config FILE` and `--set KEY=VALUE` (any number of times)."""
    parser.add_argument("--config", required=required, metavar="FILE", help="the run's YAML file")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override one value, e.g. --set training.num_workers=4; may be given many times",
    )


def read_run(arguments: argparse.Namespace) -> RunConfig:
    """The run that `--config` and `--set` describe; raises `ConfigError`."""
    from rbft.config import load_config

    return load_config(arguments.config, arguments.overrides)


def register(subparsers: Subparsers) -> None:
    """Add the library's own verbs: init, validate, import, plan, status, review, compare, predictions, export, convert, classify, keys,
    doctor."""
    from rbft.evaluation.cli import register as register_predictions
    from rbft.models.video.cli import register as register_convert
    from rbft.service_verbs import register as register_service

    _add_init(subparsers)
    _add_validate(subparsers)
    _add_import(subparsers)
    _add_plan(subparsers)
    _add_status(subparsers)
    _add_review(subparsers)
    register_predictions(subparsers, add_run_arguments)
    _add_export(subparsers)
    register_convert(subparsers)
    register_service(subparsers)
    _add_doctor(subparsers)


def _add_init(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("init", help="make a task file and a run file from a folder of videos", description=_INIT_DESCRIPTION)
    parser.add_argument("folder", help="the folder of videos")
    parser.add_argument("--annotations", metavar="FILE", help="CSV, TSV, JSONL or Parquet with the labels, where classes have no folders")
    parser.add_argument("--out", default="configs", metavar="FOLDER", help="where the two files go (default: %(default)s)")
    parser.add_argument("--name", help="name of the task and the run")
    parser.add_argument("--labels", metavar="A,B,…", help="the labels, separated by commas")
    parser.add_argument("--persona", help='who the model is asked to be, e.g. "smart home security expert"')
    parser.add_argument("--question", help="the question that a label answers")
    parser.add_argument("--model", metavar="FOLDER", help="folder of the model to start from")
    parser.add_argument("--gpus", metavar="N", help="GPUs to use; 0 for CPU only")
    parser.add_argument("--yes", action="store_true", help="ask nothing; take the defaults for what is not given")
    parser.set_defaults(handler=_init)


_INIT_DESCRIPTION = "Make a task file and a run file from a folder with a sub-folder a class, or with videos and one annotation file."


def _init(arguments: argparse.Namespace) -> None:
    from rbft import starter

    draft = starter.make_draft(arguments.folder, arguments.annotations)
    print(f"{draft.num_videos} videos, labels: {', '.join(draft.labels)}")
    fields = ("name", "labels", "persona", "question", "model", "gpus")
    given = {field: getattr(arguments, field) for field in fields if getattr(arguments, field) is not None}
    answers = starter.ask(draft, given, _take_default if arguments.yes else _ask_person)
    task_path, run_path = starter.write_files(draft, answers, arguments.out)
    print(f"wrote {task_path} and {run_path}; next:")
    for verb in ("validate", "plan"):
        print(f"  rbft {verb} --config {run_path}")


def _take_default(_question: str, default: str) -> str:
    return default


def _ask_person(question: str, default: str) -> str:
    try:
        return input(f"{question} [{default}]: ")
    except EOFError:
        print()
        return default


def _add_validate(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("validate", help="check a dataset: rows, labels, splits, leaks, missing and unusable videos")
    add_run_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="look at rows and names only; read and open no video")
    parser.set_defaults(handler=_validate)


def _validate(arguments: argparse.Namespace) -> int:
    from rbft.data.source import read_examples
    from rbft.data.validate import validate_dataset

    config = read_run(arguments)
    examples = read_examples(config.data, config.task, config.seed)
    with_unlabelled = config.evaluation.takes_unlabelled
    report = validate_dataset(
        examples, config.task, require_labels=not with_unlabelled, hash_files=not arguments.quick, probe_videos=not arguments.quick
    )
    print(report)
    most = config.data.max_bad_fraction
    too_many = report.bad_fraction > most
    if too_many:
        print(f"  {report.bad_fraction:.1%} of the videos are missing or unusable, more than data.max_bad_fraction ({most:.1%})")
    return 0 if report.ok and not too_many else 1


def _add_import(subparsers: Subparsers) -> None:
    from rbft.importing import add_formats

    parser = subparsers.add_parser(
        "import", help="write a manifest and a data card: of a run's data, SmartHome, MultiHateClip, LLaVA-style JSON"
    )
    add_run_arguments(parser, required=False)
    parser.add_argument("--out", metavar="FILE", help="the manifest.parquet to write; the data card goes beside it")
    parser.set_defaults(handler=_import, read_format=None)
    add_formats(parser)


def _import(arguments: argparse.Namespace) -> int:
    from rbft.importing import import_run

    if arguments.read_format:
        imported = arguments.read_format(arguments)
    elif arguments.config and arguments.out:
        imported = import_run(read_run(arguments), arguments.out)
    else:
        raise ConfigError("import needs --config and --out, or a format that needs no run file; see `rbft import --help`")
    print(imported)
    code: int = imported.exit_code
    return code


def _add_plan(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("plan", help="say what a run would do: steps, videos, tokens, memory; starts nothing")
    add_run_arguments(parser)
    parser.add_argument(
        "--gpu-memory-gib", type=float, metavar="N", help="memory of a training GPU (default: of this machine's, if it has one)"
    )
    parser.set_defaults(handler=_plan)


def _plan(arguments: argparse.Namespace) -> None:
    from rbft.plan import build_plan, format_plan

    gib = arguments.gpu_memory_gib
    print(format_plan(build_plan(read_run(arguments), None if gib is None else int(gib * 2**30))))


def _add_status(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("status", help="where a run is, from its folder alone", description=_STATUS_DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="the run's folder, <output_dir>/<name>: a path, or a URI of any pyarrow filesystem")
    parser.add_argument("--timeline", action="store_true", help="also what ran when, and how it ended")
    parser.add_argument("--json", action="store_true", help="all of it, for programs")
    parser.set_defaults(handler=_status)


_STATUS_DESCRIPTION = """Where a run is: its steps, how far each is, whether a job works there, and what to do next. Reads the folder alone.
Exits with 1 if there is something left to do and no job does it."""


def _status(arguments: argparse.Namespace) -> int:
    import json

    from rbft.run_status import format_status, read_status

    status = read_status(arguments.run)
    if arguments.json:
        print(json.dumps(status.as_json(), indent=2, ensure_ascii=False))
    else:
        print(format_status(status, with_timeline=arguments.timeline))
    return 0 if status.is_done or status.job is not None else 1


def _add_review(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("review", help="look at the rationales before stage 1: exclude, edit; a page, or a spreadsheet")
    add_run_arguments(parser)
    parser.add_argument("--by", metavar="NAME", help="who reviews (default: your login name)")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="of the page, on 127.0.0.1; 0, the default, takes a free one")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--export", metavar="FILE.csv", help="write the rationales to a spreadsheet and stop")
    instead.add_argument("--import", metavar="FILE.csv", dest="sheet", help="record what was changed in such a spreadsheet and stop")
    parser.set_defaults(handler=_review)


def _review(arguments: argparse.Namespace) -> None:
    import getpass
    from pathlib import Path

    from rbft.review.reviewer import Reviewer

    config = read_run(arguments)
    reviewer = Reviewer(config, arguments.by or getpass.getuser())
    if arguments.export or arguments.sheet:
        from rbft.review.sheet import export_sheet, import_sheet

        if arguments.export:
            print(f"wrote {export_sheet(reviewer, Path(arguments.export))} rationales to {arguments.export}")
            return
        print(f"recorded {import_sheet(reviewer, Path(arguments.sheet))} changes by {reviewer.by}")
    else:
        from rbft.review.app import serve_review

        print(f"{len(reviewer.items)} rationales in {reviewer.folder}, reviewed by {reviewer.by} (--by)")
        serve_review(reviewer, config.video, arguments.port, lambda url: print(f"open {url} (Ctrl-C ends it)", flush=True))
    counts = reviewer.counts()
    print(f"\n{', '.join(f'{number} {status}' for status, number in counts.items())}; `rbft train` learns them as they are now")


def _add_export(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("export", help="copy a trained model out of its run, or merge an adapter with its base; checks hashes")
    parser.add_argument("folder", help="a stage's final/ or adapter/")
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="the model folder to make: a path, or a URI of any pyarrow filesystem"
    )
    parser.add_argument("--base", metavar="FOLDER", help="where the adapter's base model is now (default: where it was in training)")
    parser.add_argument("--calibration", metavar="FILE.json", help="put this calibration into the copy's task card, for the service")
    parser.set_defaults(handler=_export)


def _export(arguments: argparse.Namespace) -> None:
    from rbft.models.export import export_model

    calibration = None
    if arguments.calibration is not None:
        from rbft.evaluation.calibration import read_calibration

        calibration = read_calibration(arguments.calibration).model_dump(mode="json")
    print(export_model(arguments.folder, arguments.out, arguments.base, calibration))


def _add_doctor(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("doctor", help="check machine, environment, cluster and model folder, and say how to mend them")
    parser.add_argument("--model", metavar="FOLDER", help="also check this model folder")
    add_run_arguments(parser, required=False)
    parser.add_argument("--run-dir", metavar="FOLDER", help="where runs will be written (default: runs)")
    parser.add_argument("--address", metavar="URL", help="of the Ray cluster (default: RAY_ADDRESS)")
    parser.set_defaults(handler=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from rbft.doctor import exit_code, format_checks, run_checks

    config = read_run(arguments) if arguments.config else None
    checks = run_checks(arguments.model, arguments.run_dir, arguments.address, config)
    print(format_checks(checks))
    return exit_code(checks)


if __name__ == "__main__":
    sys.exit(main())
