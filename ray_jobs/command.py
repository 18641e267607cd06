"""The command line that all jobs share: `--config`, `--set`, `--dry-run`, and what an error or Ctrl-C looks like."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from ray_jobs.progress import say
from ray_jobs.run import Run, command
from rbft.cli import add_run_arguments, read_run, run
from rbft.lease import Lease
from rbft.log_fields import add_fields

Job = Callable[[Run], None]


def add_arguments(parser: argparse.ArgumentParser, job: Callable[[], Job]) -> None:
    """Give `parser` a job's arguments; `job()` is asked for the job when it is to run."""
    add_run_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what would be done (steps, videos, tokens, memory) and stop")
    parser.add_argument("--retry-errors", action="store_true", help="ask again about videos that have an error row")
    parser.set_defaults(handler=lambda arguments: _handle(arguments, job))


def _handle(arguments: argparse.Namespace, job: Callable[[], Job]) -> int:
    config = read_run(arguments)
    if arguments.dry_run:
        from rbft.plan import build_plan, format_plan

        print(format_plan(build_plan(config)))
        return 0
    add_fields(run=config.name)
    try:
        with Lease(config.run_dir, command()):
            job()(Run(config, retry_errors=arguments.retry_errors))
    except KeyboardInterrupt:
        say("interrupted; what is done is kept, the same command goes on from there")
        raise
    return 0


def main(job: Job, description: str | None) -> None:
    """The `__main__` of a job's file; ends the process."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, lambda: job)

    def parse_and_do() -> int:
        arguments = parser.parse_args()
        return int(arguments.handler(arguments))

    sys.exit(run(parse_and_do))
