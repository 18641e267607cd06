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
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchmarks.clips import Case, make_clip
from benchmarks.large_model import write_large_model
from benchmarks.machine import describe_machine
from benchmarks.peers.protocol import MARK, Request
from miniature.world import sample_world
from rbft.config import VideoConfig, load_config
from rbft.models.chat import ChatAdapter
from rbft.seeds import derive_seed
from rbft.video.pool import DecodePool

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/training.md"
CURVES = ROOT / "benchmarks/results/training-losses.svg"
ENVIRONMENTS = ROOT / "runs/benchmarks/envs"
KEPT = ROOT / "runs/benchmarks/training"
"""What was measured of each size and distribution of lengths, so that they can be measured one at a time."""

SIDE = 112
"""Of a frame: 16 tokens a second of video."""
MICRO_BATCH_SIZE, ACCUMULATION_STEPS = 4, 4
LEARNING_RATE = 1e-4
CURVE_BATCH_SIZE = 8
"""Of the runs whose losses are compared."""
OURS = "ours"
LENGTHS = ("mixed", "equal")


@dataclass(frozen=True)
class Size:
    num_samples: int
    shortest_s: int
    longest_s: int
    """Mixed lengths lie between these, evenly on a logarithmic scale; equal ones are all of their geometric mean."""
    num_rounds: int

    def durations_s(self, lengths: str) -> list[int]:
        """Even numbers of seconds, drawn once for all."""
        if lengths == "equal":
            return [2 * round(math.sqrt(self.shortest_s * self.longest_s) / 2)] * self.num_samples
        draw = np.random.default_rng(derive_seed(0, "durations"))
        logs = draw.uniform(math.log(self.shortest_s), math.log(self.longest_s), self.num_samples)
        return [2 * round(math.exp(log) / 2) for log in logs]


SIZES = {"miniature": Size(128, 4, 64, num_rounds=5), "large": Size(16, 4, 32, num_rounds=3)}


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
            model = _model(size, Path(folder))
            for lengths in chosen.lengths:
                case = Workload(size, lengths, model, Path(folder) / f"{size}-{lengths}")
                measured.setdefault(size, {})[lengths] = _measure(
                    case, chosen.contenders, chosen.rounds or SIZES[size].num_rounds, chosen.logs
                )
                print(_table(size, lengths, measured[size][lengths]), flush=True)
                shutil.rmtree(case.folder)
                if chosen.contenders == list(CONTENDERS) and chosen.rounds is None:
                    KEPT.mkdir(parents=True, exist_ok=True)
                    (KEPT / f"{size}-{lengths}.json").write_text(json.dumps(asdict(measured[size][lengths])))
    if chosen.json:
        chosen.json.write_text(json.dumps({size: _figures(of) for size, of in measured.items()}, indent=2) + "\n")
    if all((KEPT / f"{size}-{lengths}.json").exists() for size in SIZES for lengths in LENGTHS):
        kept = {
            size: {lengths: Measured(**json.loads((KEPT / f"{size}-{lengths}.json").read_text())) for lengths in LENGTHS} for size in SIZES
        }
        CURVES.write_text(_curves_svg(kept["miniature"]["mixed"].losses))
        RESULT.write_text(_page(kept))
        print(f"wrote {RESULT.relative_to(ROOT)}")


def _model(size: str, folder: Path) -> Path:
    return ROOT / "miniature/model" if size == "miniature" else write_large_model(folder / "model")


class Workload:
    """The samples of one size and distribution of lengths, on the disk in every contender's form."""

    def __init__(self, size: str, lengths: str, model: Path, folder: Path) -> None:
        self.size, self.lengths, self.model, self.folder = size, lengths, model, folder
        folder.mkdir(parents=True)
        self.durations_s = SIZES[size].durations_s(lengths)
        count = len(self.durations_s)
        video = {"max_pixels": SIDE * SIDE, "fps": 1.0}
        task = load_config(ROOT / "configs/miniature.yaml").task
        adapter = ChatAdapter(model, VideoConfig(**video).spec())
        answers = [clip.human_text for clip in sample_world(seed=5, sizes={"train": count, "test": 2})][:count]
        paths = [
            make_clip(Case(f"clip-{i}", "libx264", SIDE, SIDE, duration_s, {"preset": "veryfast"}, fps=4, speed=0.5 + i / count), folder)
            for i, duration_s in enumerate(self.durations_s)
        ]
        stored: dict[str, Any] = {}
        seconds = []
        with DecodePool(1) as pool:
            for i, (path, answer) in enumerate(zip(paths, answers, strict=True)):
                clip = pool.decode(path, adapter.spec)
                sample = adapter.encode(clip, task.rationale_messages(), answer)
                stored |= {
                    f"frames_{i}": clip.frames_THWC,
                    f"input_ids_{i}": sample.input_ids_L.numpy(),
                    f"labels_{i}": sample.labels_L.numpy(),
                }
                seconds.append(sample.second_per_grid_ts)
        np.savez(folder / "samples.npz", second_per_grid_ts=np.array(seconds), **stored)
        self.num_tokens = [len(stored[f"input_ids_{i}"]) for i in range(count)]
        self.num_supervised = sum(int((stored[f"labels_{i}"] >= 0).sum()) for i in range(count))
        self.request = Request(
            model=str(model),
            samples=str(folder / "samples.npz"),
            folder="",
            num_samples=count,
            micro_batch_size=MICRO_BATCH_SIZE,
            accumulation_steps=ACCUMULATION_STEPS,
            num_rounds=1,
            learning_rate=LEARNING_RATE,
            is_grouped=False,
            counts_flops=False,
            extra={"videos": [str(path) for path in paths], "answers": answers, "video": video},
        )


@dataclass(frozen=True)
class Measured:
    """What came out for one size and distribution of lengths."""

    num_samples: int
    num_tokens: list[int]
    num_supervised: int
    durations_s: list[int]
    rounds: dict[str, list[dict[str, Any]]]
    """Contender -> its answers round by round, without the first."""
    flops: dict[str, int]
    """Of the first round."""
    losses: dict[str, list[float]]
    """In the given order, the same batches for all."""
    versions: dict[str, dict[str, str]]
    not_run: dict[str, str]
    """Contender -> why it did not run."""
    day: str

    def samples_per_s(self, name: str) -> list[float]:
        return [self.num_samples / answer["seconds"] for answer in self.rounds[name]]

    def ratios(self, peer: str) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.samples_per_s(OURS), self.samples_per_s(peer), strict=True)]

    def peak_bytes(self, name: str) -> int:
        return max(answer["peak_bytes"] for answer in self.rounds[name])

    def padded_share(self, name: str) -> float:
        """Of the positions that went through the decoder."""
        return 1 - sum(self.num_tokens) / statistics.fmean(answer["num_positions"] for answer in self.rounds[name])

    def best(self) -> str | None:
        """The peer with the most samples a second."""
        peers = [name for name in self.rounds if name != OURS]
        return max(peers, key=lambda name: statistics.median(self.samples_per_s(name)), default=None)


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


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least, largest. The range is an interval for the median (two-sided sign test: 1 - 2 / 2**n), of five rounds a 94 % one, of
    three a 75 % one."""
    return statistics.median(values), min(values), max(values)


def _figures(measured: dict[str, Measured]) -> dict[str, Any]:
    """What `--json` holds of one size."""
    figures: dict[str, Any] = {"peers": {}}
    for lengths, of in measured.items():
        best = of.best()
        if best is None or OURS not in of.rounds:
            continue
        figures[f"ratio_vs_best_{lengths}"] = round(statistics.median(of.ratios(best)), 3)
        figures[f"best_{lengths}"] = best
        for name in of.rounds:
            figures["peers"].setdefault(name, {})[lengths] = {
                "samples_per_s": round(statistics.median(of.samples_per_s(name)), 3),
                "supervised_tokens_per_s": round(of.num_supervised * statistics.median(of.samples_per_s(name)) / of.num_samples, 1),
                "ratio": round(statistics.median(of.ratios(name)), 3),
                "peak_bytes": of.peak_bytes(name),
                "padded_share": round(of.padded_share(name), 4),
                "logits_per_supervised_token": round(of.rounds[name][-1]["num_logits"] / of.num_supervised, 2),
                "flops_per_supervised_token": round(of.flops[name] / of.num_supervised),
            }
        for name, why in of.not_run.items():
            figures["peers"].setdefault(name, {})[lengths] = {"does_not_run": why}
    of = measured.get("mixed") or next(iter(measured.values()))
    peers = [name for name in of.rounds if name != OURS]
    if peers and OURS in of.rounds:
        figures["memory_ratio_vs_best"] = round(of.peak_bytes(OURS) / min(of.peak_bytes(name) for name in peers), 3)
        figures["padded_share"] = round(of.padded_share(OURS), 4)
    return figures


def _table(size: str, lengths: str, of: Measured) -> str:
    lines = [
        "| contender | samples/s | supervised tokens/s | peak memory, MiB | padded | logits a supervised token "
        "| MFLOP a supervised token | ours / contender |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, answers in of.rounds.items():
        rate = statistics.median(of.samples_per_s(name))
        median, low, high = _spread(of.ratios(name)) if OURS in of.rounds else (0.0, 0.0, 0.0)
        against = "" if name == OURS else f"{median:.2f} [{low:.2f}, {high:.2f}]"
        lines.append(
            f"| {name} | {rate:.2f} | {rate * of.num_supervised / of.num_samples:.0f} | {of.peak_bytes(name) / 2**20:.0f} "
            f"| {of.padded_share(name):.1%} | {answers[-1]['num_logits'] / of.num_supervised:.1f} "
            f"| {of.flops[name] / of.num_supervised / 1e6:.0f} | {against} |"
        )
    tokens = sorted(of.num_tokens)
    quartiles = ", ".join(str(tokens[round(share * (len(tokens) - 1))]) for share in (0, 0.25, 0.5, 0.75, 1))
    head = (
        f"### {size}, {lengths} lengths\n\nMeasured on {of.day}. {of.num_samples} samples a round of {min(of.durations_s)} to "
        f"{max(of.durations_s)} s; tokens a sample: {quartiles} (least, quartiles, most), of which "
        f"{of.num_supervised / of.num_samples:.0f} supervised on average.\n"
    )
    return "\n".join([head, *lines, ""])


def _page(measured: dict[str, dict[str, Measured]]) -> str:
    every = [of for by_lengths in measured.values() for of in by_lengths.values()]
    versions = {name: found for of in every for name, found in of.versions.items()}
    used = "\n".join(f"- {name}: " + ", ".join(f"{key} {value}" for key, value in found.items()) for name, found in versions.items())
    not_run = {name: why for of in every for name, why in of.not_run.items()}
    absent = "\n".join(f"- {name}: {why}" for name, why in not_run.items()) or "- none"
    rounds = " and ".join(f"{size.num_rounds} of the {name} size" for name, size in SIZES.items())
    tables = "\n".join(_table(size, lengths, of) for size, by_lengths in measured.items() for lengths, of in by_lengths.items())
    curves = "\n".join(_curve_table(size, by_lengths["mixed"].losses) for size, by_lengths in measured.items())
    return f"""# Fine-tuning: samples a second against other trainers

`benchmarks/peers/setup.sh; python -m benchmarks training`, on {describe_machine()}. Each size and distribution of lengths is a run of its
own.

fp32, AdamW (no decay), clipping at 1, cosine from {LEARNING_RATE:g}, no gradient checkpointing; {ACCUMULATION_STEPS} micro-batches of
{MICRO_BATCH_SIZE} samples an optimiser step, one worker. Every contender starts from the same frames (uint8, {SIDE} x {SIDE}, 1 a second)
and token ids; decoding is left out (`decode.md` has it). Peers group by length with their own option, and prepare samples between steps:
with a data process of its own transformers' Trainer was slower on two cores (1.61 s against 1.54 s for 32 samples). Ours encodes on one
thread ahead of the step. Medians of rounds in turns ({rounds}), after one that warms up; in brackets the range of the rounds' ratios.
Peak memory is what a process takes beyond its loaded libraries. Padded is the share of positions in the decoder that belong to no
sample; FLOPs are
counted by torch (`FlopCounterMode`), forward and backward.

Clips of mixed length last between the two ends evenly on a logarithmic scale; equal ones are all of the ends' geometric mean. Grouping by
length pads less the more samples it can choose from: with these lengths transformers' grouping pads 7.5 % of the miniature's positions
with
128 samples, 1.4 % with 1,000, 0.4 % with 10,000, and without grouping it is 36 % (computed from its sampler's rule).

{tables}
## The same training

The same {CURVE_BATCH_SIZE} samples a step in the same order, no grouping; mean loss of a supervised token before step 1, and in the last
step, and how far from ours at most in any step. Two things had to be made the same for that. Peers have the reference implementation's
positions
here: transformers 5 places the text after a video elsewhere (`rbft/models/positions.py`), which is another loss from the first step
on. And
nothing is accumulated: the peers' Trainer takes the mean of the micro-batches' means for Qwen2.5-VL (its `accepts_loss_kwargs` is False),
ours the mean over all supervised tokens of the global batch. In the timed rounds every peer does as it does.

![Losses]({CURVES.name})

{curves}
## Not run here

{absent}

## Versions

{used}
"""


def _curve_table(size: str, losses: dict[str, list[float]]) -> str:
    lines = [f"### {size}", "", "| contender | first | last | largest difference from ours |", "| --- | ---: | ---: | ---: |"]
    for name, values in losses.items():
        apart = max(abs(value - ours) for value, ours in zip(values, losses[OURS], strict=True))
        lines.append(f"| {name} | {values[0]:.4f} | {values[-1]:.4f} | {apart:.5f} |")
    return "\n".join([*lines, ""])


def _curves_svg(losses: dict[str, list[float]]) -> str:
    """The losses over the steps, one line a contender, each a little thinner than the one below it, so that all can be seen."""
    width, height, margin = 640, 320, 40
    colours = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
    top = max(max(values) for values in losses.values()) * 1.05
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">']
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for number, (name, values) in enumerate(losses.items()):
        steps = max(1, len(values) - 1)
        points = " ".join(
            f"{margin + (width - 2 * margin) * i / steps:.1f},{height - margin - (height - 2 * margin) * value / top:.1f}"
            for i, value in enumerate(values)
        )
        colour, thickness = colours[number % len(colours)], 2 * (len(losses) - number)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{thickness}"/>')
        parts.append(f'<text x="{width - margin}" y="{margin + 16 * number}" text-anchor="end" fill="{colour}">{name}</text>')
    parts.append(f'<line x1="{margin}" y1="{height - margin}" x2="{width - margin}" y2="{height - margin}" stroke="black"/>')
    parts.append(f'<line x1="{margin}" y1="{margin}" x2="{margin}" y2="{height - margin}" stroke="black"/>')
    parts.append(f'<text x="{width / 2}" y="{height - 10}" text-anchor="middle">optimiser step</text>')
    parts.append(f'<text x="{margin}" y="{margin - 12}">loss a supervised token (0 to {top:.2f})</text></svg>')
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
