"""`make reproduce`: the paper's five tables and its Figure 2 on the miniature. `python -m miniature.reproduce [table1 … figure2]`

Table 2 has three classes, so it is of a world whose clips have titles and of a run of its own, runs/miniature-titles; the rest is of the
demo's world and run, and uses what `make demo` has made. As `rbft reproduce` does it, in this process.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from miniature.boxes import write_world_boxes
from miniature.demo import ROOT, SEED, SIZES, WORLD
from miniature.write import drawn_world
from ray_jobs.cli import REPRODUCIBLE
from rbft.cli import run as run_command

TITLED = "table2"
TITLED_WORLD = ROOT / "runs/miniature-titles/world"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m miniature.reproduce", description="The paper's tables and Figure 2 on the miniature.")
    parser.add_argument("what", nargs="*", metavar="|".join(REPRODUCIBLE), help="of the paper; all of them by default")
    what: list[str] = parser.parse_args().what or list(REPRODUCIBLE)
    if unknown := set(what) - set(REPRODUCIBLE):
        parser.error(f"{', '.join(sorted(unknown))} is not in the paper; choose from {', '.join(REPRODUCIBLE)}")

    def command() -> None:
        reproduce([each for each in what if each != TITLED], WORLD)
        reproduce([each for each in what if each == TITLED], TITLED_WORLD, "miniature-titles")

    raise SystemExit(run_command(command))


def reproduce(what: Sequence[str], world: Path, task: str = "miniature") -> None:
    """`what` of the paper on clips of `task`, which are drawn to `world` unless they are there; the run is called like the task."""
    from ray_jobs.reproduce import reproduce_configs
    from rbft.config import load_config

    if not what:
        return
    manifest = drawn_world(world, SEED, SIZES, task)
    overrides = [
        f"name={task}",
        f"task={ROOT / 'configs/tasks' / f'{task}.yaml'}",
        f"data.manifest={manifest}",
        f"evaluation.masking.boxes={write_world_boxes(world)}",
        f"evaluation.attributes={world / 'truth.parquet'}",
    ]
    reproduce_configs(what, [load_config(ROOT / "configs/miniature.yaml", overrides)])


if __name__ == "__main__":
    main()
