"""`make evidence`: a protocol on fresh worlds and a titled one. `python -m miniature.evidence [--protocol NAME]`

    worlds -> rationales (one vLLM engine for all worlds) -> all stages of all systems (the same two DeepSpeed workers) -> predictions
    and test rationales (transformers, one process) -> evidence.json, evidence.md, report.html

Every step is the pipeline's own and is kept by fingerprint: the command can be interrupted and given again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from miniature.analysis import BASE, TAUGHT, World, read_truth
from miniature.protocol import FIRST, ROOT, Protocol, load_protocol, open_run
from ray_jobs.evaluate import held_out, read_predictions
from ray_jobs.generate import read_rationales
from ray_jobs.inference import run_inference
from ray_jobs.pipeline import make_report, run_steps
from ray_jobs.progress import Progress, say
from ray_jobs.run import Run
from ray_jobs.work import Work
from rbft import rows
from rbft.config import GatesConfig, ModelConfig
from rbft.lease import Lease
from rbft.rationales.table import rationales_from_table
from rbft.records import rationale_schema

NUM_SLOT_CLIPS = 256
"""Test clips a world whose rationales are read for slots: a standard error of about a point a slot over five worlds."""


def main() -> None:
    from rbft.cli import run as run_command

    parser = argparse.ArgumentParser(prog="python -m miniature.evidence", description="Does RB-FT beat Direct-SFT on the miniature world?")
    parser.add_argument("--protocol", default=FIRST, help=f"a name in miniature/protocols, or a file; {FIRST} by default")
    parser.add_argument("--out", type=Path, help="folder for worlds, runs and results; runs/<protocol's name> by default")
    arguments = parser.parse_args()

    def command() -> None:
        protocol = load_protocol(arguments.protocol)
        folder = arguments.out or ROOT / "runs" / protocol.name
        with Lease(str(folder), "make evidence"):
            run_protocol(protocol, folder)

    raise SystemExit(run_command(command))


def run_protocol(protocol: Protocol, folder: Path) -> None:
    """Everything, and the three result files in `folder`."""
    from miniature.evidence_page import write_results

    runs = open_runs(protocol, folder)
    run_steps(runs)
    with runs[0].timed("test rationales"):
        write_test_rationales(runs)
    with runs[0].timed("report"):
        report = make_report(runs[0])
    worlds = [read_world(run, folder) for run in runs]
    write_results(protocol, folder, runs, worlds, report)


def open_runs(protocol: Protocol, folder: Path) -> list[Run]:
    """A run a world, the titled world last; it has the table's systems only."""
    opened = partial(open_run, folder, learning=protocol.learning, gates_profile=protocol.gates_profile)
    plain = [opened(f"world-{seed}", seed, protocol.sizes, systems=protocol.all_systems) for seed in protocol.worlds]
    seed = protocol.title_world
    titled = opened(f"titles-{seed}", seed, protocol.sizes, systems=protocol.systems, task="miniature-titles")
    return [*plain, titled]


def writers(run: Run) -> dict[str, tuple[ModelConfig, str]]:
    """Who writes test rationales -> (model, folder for them): the base, and every system after its stage 1 on all videos."""
    found = {BASE: (run.config.model, f"{run.layout.root}/rationales/test-{run.model_fingerprint}")}
    for (system, stage), stage_folder in run.stage_folders().items():
        if stage == "rationale" and "@" not in system:
            model = run.config.model.model_copy(update={"path": f"{stage_folder}/final"})
            found[system] = (model, f"{stage_folder}/test-rationales")
    return found


def write_test_rationales(runs: Sequence[Run]) -> None:
    """What every writer says about the first test clips of its world."""
    work = []
    for run in runs:
        for writer, (model, folder) in writers(run).items():
            done = rows.done_ids(folder, rationale_schema())
            pending = [example for example in held_out(run)[:NUM_SLOT_CLIPS] if example.id not in done]
            if pending:
                work.append(Work("rationale", folder, pending, model, run.config.task, {"system": writer}, GatesConfig()))
    total = sum(len(item.examples) for item in work)
    if total:
        say(f"test rationales: {total}, by transformers")
        run_inference(runs[0].config, "hf", work, Progress("test rationales", "clips", total))


def read_world(run: Run, folder: Path) -> World:
    """The results of a finished run."""
    written = {writer: rationales_from_table(rows.read_parts(path, rationale_schema())) for writer, (_, path) in writers(run).items()}
    return World(
        seed=run.config.seed,
        truth=read_truth(folder / "worlds" / f"{run.config.task.name}-{run.config.seed}"),
        predictions={system: read_predictions(run, system) for system in run.config.evaluation.systems},
        rationales=written | {TAUGHT: read_rationales(run)},
    )


if __name__ == "__main__":
    main()
