"""Rationales a second: the job against bare engines, warm and interleaved in one run. `python -m benchmarks generation [--json PATH]`

Two sizes: the miniature shows what everything around the engine costs, a random model of a hundred million parameters is bound by the
engine, as a real one is. Contenders take turns; each ratio is a median over rounds, of the job's videos a second to the peer's in the
same round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.contenders import BareAsyncLLM, Case, Contender, Job, OfflineLLM, OneByOneHF, Outcome, RayDataLLM
from benchmarks.large_model import write_large_model
from benchmarks.machine import describe_machine
from miniature.world import sample_world
from miniature.write import write_world
from ray_jobs.run import versions
from rbft.config import load_config
from rbft.data.manifest import read_manifest

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/generation.md"

NUM_ROUNDS = 5
NUM_VIDEOS = {"miniature": 384, "large": 48}
NUM_HF_VIDEOS = {"miniature": 16, "large": 2}
MAX_NEW_TOKENS = {"miniature": 80, "large": 48}
PEERS: dict[str, Callable[[Case], Contender]] = {
    "async_llm": BareAsyncLLM,
    "llm": OfflineLLM,
    "ray_data_llm": RayDataLLM,
    "hf": lambda case: OneByOneHF(case, NUM_HF_VIDEOS[case.name]),
}


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation")
    parser.add_argument("--sizes", nargs="+", default=list(NUM_VIDEOS), choices=list(NUM_VIDEOS))
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the ratios too")
    chosen = parser.parse_args(arguments)
    # vLLM's CPU backend reads these when it is imported; the same for every contender.
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING"}
    _join_ray()
    measured = {}
    with tempfile.TemporaryDirectory(prefix="rbft-bench-") as folder:
        for size in chosen.sizes:
            measured[size] = _measure(_case(size, Path(folder)))
            print(_table(size, measured[size]), flush=True)
    ratios = {size: {f"ratio_vs_{peer}": _ratio(rounds, peer) for peer in PEERS if peer in rounds} for size, rounds in measured.items()}
    if chosen.json:
        chosen.json.write_text(
            json.dumps({size: {name: ratio[0] for name, ratio in of.items()} for size, of in ratios.items()}, indent=2) + "\n"
        )
    if chosen.sizes == list(NUM_VIDEOS):
        RESULT.write_text(_page(measured))
        print(f"wrote {RESULT.relative_to(ROOT)}")


def _join_ray() -> None:
    import ray

    # For two engines and their helpers; what a contender does not use costs the others nothing.
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _system_config={"worker_niceness": 0},  # as the contenders outside Ray have it; 15 by default
    )
    ray.data.DataContext.get_current().enable_progress_bars = False


def _case(size: str, folder: Path) -> Case:
    num_videos = NUM_VIDEOS[size]
    world = write_world(folder / f"{size}-world", sample_world(seed=4, sizes={"train": num_videos, "test": 2}))
    examples = [
        example.__class__(example.id, str(world.parent / example.uri)) for example in read_manifest(str(world)) if example.split == "train"
    ]
    cores = os.cpu_count() or 1
    settings = [
        *(f"name={size}", f"output_dir={folder}", f"data.manifest={world}", f"generation.max_new_tokens={MAX_NEW_TOKENS[size]}"),
        *(f"engine.num_cpus={cores}", f"engine.decode_workers={cores}"),
    ]
    if size == "large":
        settings += [
            f"model.path={write_large_model(folder / 'model')}",
            "engine.max_num_seqs=16",
            "engine.rows_per_block=8",
        ]
    return Case(size, load_config(ROOT / "configs/miniature.yaml", settings), examples, NUM_ROUNDS + 1, folder / size)


def _measure(case: Case) -> dict[str, list[Outcome]]:
    """Contender -> what it did, round by round, without the first, which warms up. A peer that cannot run is left out, and said."""
    contenders: dict[str, Contender] = {"job": Job(case)}
    outcomes: dict[str, list[Outcome]] = {}
    try:
        contenders["job"].run(0)
        for name, start in PEERS.items():
            started = time.monotonic()
            try:
                contenders[name] = start(case)
                contenders[name].run(0)
                print(f"{case.name}: {name} is warm after {time.monotonic() - started:.0f} s", flush=True)
            except Exception as error:  # noqa: BLE001  # a peer of another project may not run with our versions: that is a finding
                contenders.pop(name, None)
                print(f"{case.name}: {name} does not run here: {' '.join(str(error).split())[-300:]}", flush=True)
        names = list(contenders)
        outcomes = {name: [] for name in names}
        for round_ in range(1, case.num_rounds):
            for name in names[round_ % len(names) :] + names[: round_ % len(names)]:  # nobody is always first
                outcomes[name].append(contenders[name].run(round_))
            print(f"{case.name} round {round_}: " + ", ".join(f"{n} {_rate(o[-1]):.2f}/s" for n, o in outcomes.items()), flush=True)
    finally:
        for contender in contenders.values():
            contender.close()
    return outcomes


def _rate(outcome: Outcome) -> float:
    return outcome.num_videos / outcome.seconds


def _ratio(rounds: dict[str, list[Outcome]], peer: str) -> tuple[float, float, float]:
    """Median, least and largest ratio of the job's videos a second to the peer's in the same round.

    Of five rounds the range is a 94 % interval for the median (two-sided sign test: 1 - 2 / 2**5).
    """
    ratios = [_rate(job) / _rate(other) for job, other in zip(rounds["job"], rounds[peer], strict=True)]
    return round(statistics.median(ratios), 3), round(min(ratios), 3), round(max(ratios), 3)


def _table(size: str, rounds: dict[str, list[Outcome]]) -> str:
    lines = ["| contender | videos/s | tokens/s | job / contender |", "| --- | ---: | ---: | ---: |"]
    for name, outcomes in rounds.items():
        videos = statistics.median(map(_rate, outcomes))
        tokens = statistics.median(outcome.num_tokens / outcome.seconds for outcome in outcomes)
        median, low, high = _ratio(rounds, name)
        against = "" if name == "job" else f"{median:.2f} [{low:.2f}, {high:.2f}]"
        lines.append(f"| {name} | {videos:.2f} | {tokens:.0f} | {against} |")
    return f"### {size}\n\n" + "\n".join(lines) + "\n\n" + _where_it_goes(rounds["job"]) + "\n"


def _where_it_goes(outcomes: Sequence[Outcome]) -> str:
    total = sum(sum(outcome.cpu_s.values()) for outcome in outcomes)
    shares = {kind: sum(outcome.cpu_s.get(kind, 0.0) for outcome in outcomes) / total for kind in outcomes[0].cpu_s}
    by_size = sorted(shares.items(), key=lambda each: -each[1])
    busy = total / sum(outcome.seconds for outcome in outcomes)
    return f"The job keeps {busy:.2f} cores busy: " + ", ".join(f"{kind} {share:.0%}" for kind, share in by_size) + "."


def _page(measured: dict[str, dict[str, list[Outcome]]]) -> str:
    used = ", ".join(f"{package} {version}" for package, version in versions().items())
    tables = "\n".join(_table(size, rounds) for size, rounds in measured.items())
    return f"""# Rationales a second: the job against bare engines

`python -m benchmarks generation`, {time.strftime("%Y-%m-%d")}, on {describe_machine()}. {used}.
Medians of {NUM_ROUNDS} interleaved rounds, warm; in brackets the range of the rounds' ratios. `benchmarks/contenders.py` says what each
contender does.

{tables}"""


if __name__ == "__main__":
    main(sys.argv[1:])
