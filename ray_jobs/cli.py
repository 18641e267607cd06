"""The verbs of `rbft` that need Ray; collected by `rbft.cli` from the entry-point group `rbft.commands`."""

from __future__ import annotations

import argparse
import importlib
from functools import partial
from typing import Any

from rbft.cli import add_overrides

_JOBS = {
    "generate": "write a rationale for every training video",
    "train": "run the fine-tuning stages",
    "evaluate": "predictions and metrics of every system on the held-out videos",
    "pipeline": "all of it: generate, train, evaluate, report",
}


REPRODUCIBLE = ("table1", "table2", "table3", "table4", "table5", "figure2")
"""What `rbft reproduce` knows of the paper."""


def register(subparsers: Any) -> None:
    """Add a parser for each job; its module, and with it Ray, is imported when it runs."""
    from ray_jobs.command import add_arguments

    for name, help_text in _JOBS.items():
        parser = subparsers.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
        add_arguments(parser, partial(_job, name))
    _add_submit(subparsers)
    _add_jobs(subparsers)
    help_text = "the paper's tables and Figure 2 with rows of one's own data beside the authors'"
    add_reproduce_arguments(subparsers.add_parser("reproduce", help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}."))


def add_reproduce_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `rbft reproduce` and of `python ray_jobs/reproduce.py`."""
    parser.add_argument(
        "what", nargs="+", choices=REPRODUCIBLE, metavar="|".join(REPRODUCIBLE), help="what of the paper; several in one go"
    )
    parser.add_argument("--config", action="append", required=True, metavar="FILE", help="the run's YAML file; again for another backbone")
    add_overrides(parser)
    parser.set_defaults(handler=lambda arguments: importlib.import_module("ray_jobs.reproduce").reproduce(arguments))


def _add_submit(subparsers: Any) -> None:
    parser = subparsers.add_parser("submit", help="run a job on a cluster: send the working tree, show the log", description=_SUBMIT)
    parser.add_argument("verb", choices=(*_JOBS, "reproduce"), help="what is done")
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"what of the paper is reproduced: {', '.join(REPRODUCIBLE)}")
    parser.add_argument("--config", action="append", required=True, metavar="FILE", help="the run's YAML file; again as for reproduce")
    add_overrides(parser)
    _add_address(parser)
    parser.add_argument("--detach", action="store_true", help="do not wait: print the job's id and leave")
    parser.add_argument("--working-dir", default=".", metavar="FOLDER", help="the working tree to send (default: this folder)")
    parser.add_argument("--retry-errors", action="store_true", help="ask again about videos that have an error row")
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent and run, and stop")
    parser.set_defaults(handler=lambda arguments: _submit_module().submit(arguments))


_SUBMIT = """Run a job on a Ray cluster. Its exit code is the job's own; 130 if the job was told to stop. Ctrl-C leaves the job alone. The
token is read from RAY_AUTH_TOKEN, the file in RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token."""


def _add_jobs(subparsers: Any) -> None:
    jobs = subparsers.add_parser("jobs", help="the jobs of a cluster", description="The jobs that run, or the last five.")
    _add_address(jobs)
    jobs.add_argument("--all", action="store_true", help="all that the cluster remembers")
    jobs.add_argument("--json", action="store_true", help="for programs")
    jobs.set_defaults(handler=lambda arguments: _submit_module().show_jobs(arguments))
    logs = subparsers.add_parser("logs", help="show the log of a job on a cluster", description="Show a job's log until the job ends.")
    _add_address(logs)
    logs.add_argument("job", metavar="JOB", help="its id, or the name of its run")
    logs.add_argument("--no-follow", action="store_true", help="only what is there now")
    logs.set_defaults(handler=lambda arguments: _submit_module().show_log(arguments))
    stop = subparsers.add_parser("stop", help="end a job on a cluster", description="Have a job save what it did, and end it.")
    _add_address(stop)
    stop.add_argument("job", metavar="JOB", help="its id, or the name of its run")
    stop.set_defaults(handler=lambda arguments: _submit_module().stop_job(arguments))


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address", metavar="URL", help="of the cluster (default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, http://127.0.0.1:8265)"
    )


def _submit_module() -> Any:
    return importlib.import_module("ray_jobs.submit")


def _job(name: str) -> Any:
    return importlib.import_module(f"ray_jobs.{name}").job
