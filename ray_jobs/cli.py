"""The verbs of `rbft` that need Ray; collected by `rbft.cli` from the entry-point group `rbft.commands`."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

_JOBS = {
    "generate": "write a rationale for every training video",
    "train": "run the fine-tuning stages",
    "evaluate": "predictions and metrics of every system on the held-out videos",
    "pipeline": "all of it: generate, train, evaluate, report",
}


def register(subparsers: Any) -> None:
    """Add a parser for each job; its module, and with it Ray, is imported when it runs."""
    from ray_jobs.command import add_arguments

    for name, help_text in _JOBS.items():
        parser = subparsers.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
        add_arguments(parser, partial(_job, name))


def _job(name: str) -> Any:
    return importlib.import_module(f"ray_jobs.{name}").job
