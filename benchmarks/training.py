"""Samples a second of fine-tuning: ours against what others train Qwen2.5-VL with, warm and in turns in one run.

    benchmarks/peers/setup.sh; python -m benchmarks training [--json PATH]

Two sizes (the miniature; a random model of a hundred million parameters), each with clips of equal and of mixed length. Every contender is
a process of its own (`benchmarks/peers`), gets the same frames and token ids, the same batch, precision and optimiser, and groups lengths
in its own way. A round is every sample once, so all do the same work in it; each ratio is a median over rounds, of ours to the peer's in
the same round. Before that, all of them train the same batches in the same order: the losses must lie on one another.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from benchmarks.peers.protocol import MARK, Request
from benchmarks.training_page import CURVES, OURS, Measured, curves_svg, figures, page, table
from benchmarks.training_workload import CURVE_BATCH_SIZE, LENGTHS, ROOT, SIZES, Workload, write_model

RESULT = ROOT / "benchmarks/results/training.md"
ENVIRONMENTS = ROOT / "runs/benchmarks/envs"
KEPT = ROOT / "runs/benchmarks/training"
"""What was measured of each size and distribution of lengths, so that they can be measured one at a time."""


@dataclass(frozen=True)
class Contender:
    module: str
    environment: str
    """Of `benchmarks/peers/setup.sh`; "" is this project's own."""
    variant: str = ""

    @property
    def python(self) -> str:
        return str(ENVIRONMENTS / self.environment / "bin/python") if self.environment else sys.executable


CONTENDERS = {
    OURS: Contender("ours", ""),
    "hf-trainer": Contender("hf_trainer", "trl"),
    "trl": Contender("trl_sft", "trl"),
    "ms-swift": Contender("ms_swift", "swift"),
    "ms-swift padding-free": Contender("ms_swift", "swift", "padding_free"),
    "ms-swift packing": Contender("ms_swift", "swift", "packing"),
    "llama-factory": Contender("llama_factory", "llamafactory"),
}


class PeerError(Exception):
    """A contender's process ended, or said that it cannot."""


class Process:
    """A contender at work."""

    def __init__(self, contender: Contender, request: Request, log: Path) -> None:
        if not Path(contender.python).exists():
            raise PeerError(f"no {contender.python}; benchmarks/peers/setup.sh makes it")
        Path(request.folder).mkdir(parents=True)
        path = Path(request.folder) / "request.json"
        path.write_text(json.dumps(asdict(request)))
        # Nothing of this project's own environment but its sources, and nothing from a hub.
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_DISABLED": "true"}
        environment["PATH"] = f"{Path(contender.python).parent}{os.pathsep}{environment['PATH']}"
        self._log_path = log
        self._log = log.open("a")
        command = [contender.python, "-m", f"benchmarks.peers.{contender.module}", str(path)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment, cwd=request.folder, text=True
        )
        self.versions = self._answer()["ready"]

    def round(self) -> dict[str, Any]:
        self._write("round\n")
        return self._answer()

    def finish(self) -> list[float]:
        """The losses of all its steps; the process ends."""
        self._input.close()
        losses: list[float] = self._answer()["losses"]
        self.close()
        return losses

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    @property
    def _input(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _write(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # the answer will say why
            self._input.write(text)
            self._input.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                message: dict[str, Any] = json.loads(line.removeprefix(MARK))
                if "error" in message:
                    raise PeerError(message["error"])
                return message
            self._log.write(line)
        raise PeerError(f"its process ended with code {self._process.wait()}: {_last_line(self._log_path)}")


def _last_line(path: Path) -> str:
    return (path.read_text(errors="replace").strip().splitlines() or ["no word"])[-1][-300:]


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--lengths", nargs="+", default=list(LENGTHS), choices=LENGTHS)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, help="of each size, in place of its own number")
    parser.add_argument("--logs", type=Path, metavar="DIR", default=ROOT / "runs/benchmarks/logs", help="what the contenders print")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the ratios too")
    chosen = parser.parse_args(arguments)
    chosen.logs.mkdir(parents=True, exist_ok=True)
    measured: dict[str, dict[str, Measured]] = {}
    with tempfile.TemporaryDirectory(prefix="rbft-bench-") as folder:
        for size in chosen.sizes:
            model = write_model(size, Path(folder))
            for lengths in chosen.lengths:
                case = Workload(size, lengths, model, Path(folder) / f"{size}-{lengths}")
                measured.setdefault(size, {})[lengths] = _measure(
                    case, chosen.contenders, chosen.rounds or SIZES[size].num_rounds, chosen.logs
                )
                print(table(size, lengths, measured[size][lengths]), flush=True)
                shutil.rmtree(case.folder)
                if chosen.contenders == list(CONTENDERS) and chosen.rounds is None:
                    KEPT.mkdir(parents=True, exist_ok=True)
                    (KEPT / f"{size}-{lengths}.json").write_text(json.dumps(asdict(measured[size][lengths])))
    if chosen.json:
        chosen.json.write_text(json.dumps({size: figures(of) for size, of in measured.items()}, indent=2) + "\n")
    if all((KEPT / f"{size}-{lengths}.json").exists() for size in SIZES for lengths in LENGTHS):
        kept = {
            size: {lengths: Measured(**json.loads((KEPT / f"{size}-{lengths}.json").read_text())) for lengths in LENGTHS} for size in SIZES
        }
        RESULT.with_name(CURVES).write_text(curves_svg(kept["miniature"]["mixed"].losses))
        RESULT.write_text(page(kept))
        print(f"wrote {RESULT.relative_to(ROOT)}")


def _measure(case: Workload, names: Sequence[str], num_rounds: int, logs: Path) -> Measured:
    not_run: dict[str, str] = {}
    losses: dict[str, list[float]] = {}
    for name in names:
        # Without accumulation: transformers' Trainer takes the mean of the micro-batches' means for these models.
        request = replace(
            case.request,
            folder=str(case.folder / f"curve {name}"),
            variant=CONTENDERS[name].variant,
            micro_batch_size=CURVE_BATCH_SIZE,
            accumulation_steps=1,
        )
        try:
            with _running(name, request, logs / f"{case.size}-{case.lengths}-{name}.txt".replace(" ", "-")) as process:
                process.round()
                losses[name] = process.finish()
            print(f"{case.size} {case.lengths}: {name} first loss {losses[name][0]:.4f}, last {losses[name][-1]:.4f}", flush=True)
        except PeerError as error:
            not_run[name] = str(error)
            print(f"{case.size} {case.lengths}: {name} does not run here: {error}", flush=True)
    running = [name for name in names if name in losses]
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in running}
    flops, versions = {}, {}
    with contextlib.ExitStack() as stack:
        processes = {}
        for name in running:
            request = replace(
                case.request,
                folder=str(case.folder / name),
                num_rounds=num_rounds + 1,
                is_grouped=True,
                counts_flops=True,
                variant=CONTENDERS[name].variant,
            )
            log = logs / f"{case.size}-{case.lengths}-{name}.txt".replace(" ", "-")
            processes[name] = stack.enter_context(_running(name, request, log))
            flops[name] = processes[name].round()["flops"]
            versions[name] = processes[name].versions
        for number in range(num_rounds):
            for name in running[number % len(running) :] + running[: number % len(running)]:  # nobody is always first
                rounds[name].append(processes[name].round())
            said = ", ".join(f"{name} {case.request.num_samples / of[-1]['seconds']:.2f}/s" for name, of in rounds.items())
            print(f"{case.size} {case.lengths} round {number + 1}: {said}", flush=True)
    return Measured(
        case.request.num_samples,
        case.num_tokens,
        case.num_supervised,
        case.durations_s,
        rounds,
        flops,
        losses,
        versions,
        not_run,
        time.strftime("%Y-%m-%d"),
    )


@contextlib.contextmanager
def _running(name: str, request: Request, log: Path) -> Iterator[Process]:
    process = Process(CONTENDERS[name], request, log)
    try:
        yield process
    finally:
        process.close()


if __name__ == "__main__":
    main(sys.argv[1:])
