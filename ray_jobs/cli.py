"""The verbs of `rbft` that need Ray; collected by `rbft.cli` from the entry-point group `rbft.commands`."""

from __future__ import annotations

import argparse
import importlib
from functools import partial
from typing import Any

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
    help_text = "the paper's tables and Figure 2 with rows of one's own data beside the authors'"
    add_reproduce_arguments(subparsers.add_parser("reproduce", help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}."))


def add_reproduce_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `rbft reproduce` and of `python ray_jobs/reproduce.py`."""
    parser.add_argument(
        "what", nargs="+", choices=REPRODUCIBLE, metavar="|".join(REPRODUCIBLE), help="what of the paper; several in one go"
    )
    parser.add_argument("--config", action="append", required=True, metavar="FILE", help="the run's YAML file; again for another backbone")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override one value in all of them"
    )
    parser.set_defaults(handler=lambda arguments: importlib.import_module("ray_jobs.reproduce").reproduce(arguments))


def _job(name: str) -> Any:
    return importlib.import_module(f"ray_jobs.{name}").job
