"""`make gates`: what the world, the base and the rates must hold on development worlds before an experiment is frozen.

    slots       greedy rationales of the base on held-out general clips and on a development world, slot by slot
    rates       every system once with every rate, on the development worlds' validation clips
    headroom    stage 1 on true captions (`rb-ft-human`) minus Direct-SFT of two epochs, each at its best rate

RB-FT itself has its rates tried like the others', with as many trials; its margin over Direct-SFT is not looked at here, nor tuned on.
Results go to miniature/protocols/<name>.gates.json. `python -m miniature.gates [--protocol NAME]`
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from miniature.protocol import FIRST, ROOT, Protocol, gates_file, load_protocol, open_run
from ray_jobs.evaluate import read_predictions
from ray_jobs.pipeline import run_steps
from ray_jobs.run import Run, versions
from rbft.evaluation.study import Estimate, Study, make_study
from rbft.evaluation.tables import percent, points

METRIC = "balanced_accuracy"
NUM_SLOT_CLIPS = 512
ORACLE, BASELINE = "rb-ft-human", "direct-sft-2"


def main() -> None:
    from rbft.cli import run as run_command

    parser = argparse.ArgumentParser(prog="python -m miniature.gates", description="Gates and rates, on development worlds.")
    parser.add_argument("--protocol", default=FIRST, help=f"a name in miniature/protocols, or a file; {FIRST} by default")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/gates", help="folder for the development worlds and their runs")
    arguments = parser.parse_args()

    def command() -> int:
        protocol = load_protocol(arguments.protocol)
        result = judge(protocol, run_trials(protocol, arguments.out), base_slots())
        found = gates_file(arguments.protocol)
        found.write_text(json.dumps(result, indent=2) + "\n")
        print(f"\n{describe(result)}\nwritten to {found}")
        return 0 if all(gate["holds"] for gate in result["gates"].values()) else 1

    raise SystemExit(run_command(command))


def judge(protocol: Protocol, trials: dict[float, Study], slots: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Every system's trials, its best rate, the headroom, and whether each gate holds.

    `trials` maps a rate to the study of all systems at that rate, `slots` a domain to the shares of slots the base names rightly.
    """
    estimates = {
        system: {rate: study.estimate(system, METRIC) for rate, study in trials.items()}
        for system in protocol.systems
        if system in protocol.learning.rates
    }
    best = {system: max(by_rate, key=lambda rate: by_rate[rate].value) for system, by_rate in estimates.items()}
    headroom = _across(trials, ORACLE, best[ORACLE], BASELINE, best[BASELINE])
    wanted = protocol.gates
    low, high = wanted.target_slots
    return {
        "protocol": protocol.name,
        "worlds": list(protocol.development.worlds),
        "sizes": protocol.development.sizes,
        "slots": slots,
        "zero_shot": next(iter(trials.values())).estimate("zero-shot", METRIC).value,
        "trials": {system: {f"{rate:g}": _plain(estimate) for rate, estimate in by_rate.items()} for system, by_rate in estimates.items()},
        "best_rates": best,
        "gates": {
            "general slots": _gate(slots["general"]["overall"], f"at least {percent(wanted.general_slots)}", wanted.general_slots, 1.0),
            "target slots": _gate(slots["target"]["overall"], f"{percent(low)} to {percent(high)}", low, high),
            "oracle headroom": _gate(headroom, f"at least {points(wanted.oracle_headroom)} points", wanted.oracle_headroom, 1.0),
        },
        "versions": versions(),
    }


def run_trials(protocol: Protocol, folder: Path) -> dict[float, Study]:
    """Rate -> the study of all systems at that rate over the development worlds. One engine start and one training start for all."""
    development = protocol.development
    runs: dict[float, list[Run]] = {
        rate: [
            open_run(
                *(folder, f"world-{seed}-rate-{rate:g}", seed, development.sizes),
                systems=protocol.systems,
                learning=protocol.learning.model_copy(update={"rates": dict.fromkeys(protocol.learning.rates, rate)}),
                gates_profile=protocol.gates_profile,
                split="validation",
            )
            for seed in development.worlds
        ]
        for rate in development.rates
    }
    run_steps([run for of_rate in runs.values() for run in of_rate])
    return {
        rate: make_study(
            [{system: read_predictions(run, system) for system in protocol.systems} for run in of_rate], of_rate[0].config.task.labels
        )
        for rate, of_rate in runs.items()
    }


def base_slots() -> dict[str, dict[str, float]]:
    """Domain -> share of slots that the base names rightly."""
    from miniature.base import MODEL_FOLDER, load_task
    from miniature.evaluate import slot_scores
    from rbft.models.chat import ChatAdapter
    from rbft.models.load import load_model
    from rbft.records import VideoSpec

    task, processor = load_task(), ChatAdapter(MODEL_FOLDER, VideoSpec()).processor
    model = load_model(MODEL_FOLDER, "float32")
    return {domain: slot_scores(model, processor, task, domain, NUM_SLOT_CLIPS) for domain in ("general", "target")}


def _across(trials: dict[float, Study], system: str, system_rate: float, baseline: str, baseline_rate: float) -> float:
    """Difference of two systems, each at its own rate."""
    return trials[system_rate].estimate(system, METRIC).value - trials[baseline_rate].estimate(baseline, METRIC).value


def _gate(value: float, wanted: str, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "wanted": wanted, "holds": low <= value <= high}


def _plain(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "ci95": list(estimate.ci95), "worlds": list(estimate.repetitions)}


def describe(result: dict[str, Any]) -> str:
    """The result for the terminal."""
    lines = ["balanced accuracy by rate, mean over development worlds; * the best"]
    for system, by_rate in result["trials"].items():
        best = result["best_rates"][system]
        cells = [f"{rate}: {percent(found['value'])}{'*' if float(rate) == best else ' '}" for rate, found in by_rate.items()]
        lines.append(f"  {system:16} " + "   ".join(cells))
    for name, gate in result["gates"].items():
        lines.append(f"{name}: {percent(gate['value'])}, wanted {gate['wanted']}: {'holds' if gate['holds'] else 'DOES NOT HOLD'}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
