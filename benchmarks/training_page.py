"""What the benchmark of fine-tuning found: ratios, tables, loss curves, and the page of results."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.training_workload import ACCUMULATION_STEPS, CURVE_BATCH_SIZE, LEARNING_RATE, MICRO_BATCH_SIZE, SIDE, SIZES

OURS = "ours"
CURVES = "training-losses.svg"
"""Beside the page."""


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

    def memory_ratio(self) -> float:
        """Our peak over that of the peer with the least."""
        return self.peak_bytes(OURS) / min(self.peak_bytes(name) for name in self.rounds if name != OURS)

    def padded_share(self, name: str) -> float:
        """Of the positions that went through the decoder."""
        return 1 - sum(self.num_tokens) / statistics.fmean(answer["num_positions"] for answer in self.rounds[name])

    def flops_ratio(self) -> float:
        """The fewest FLOPs of a peer over ours: how many times faster leaving work out can make a step that is all matrix products."""
        return min(flops for name, flops in self.flops.items() if name != OURS) / self.flops[OURS]

    def best(self) -> str | None:
        """The peer with the most samples a second."""
        peers = [name for name in self.rounds if name != OURS]
        return max(peers, key=lambda name: statistics.median(self.samples_per_s(name)), default=None)


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least, largest. The range is an interval for the median (two-sided sign test: 1 - 2 / 2**n), of five rounds a 94 % one, of
    three a 75 % one."""
    return statistics.median(values), min(values), max(values)


def figures(measured: dict[str, Measured]) -> dict[str, Any]:
    """What `--json` holds of one size; `memory_ratio_vs_best` is the worse one of the two distributions of lengths."""
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
        figures[f"memory_ratio_vs_best_{lengths}"] = round(of.memory_ratio(), 3)
    of = measured.get("mixed") or next(iter(measured.values()))
    if ratios := [ratio for name, ratio in figures.items() if name.startswith("memory_ratio_vs_best_")]:
        figures["memory_ratio_vs_best"] = max(ratios)
        figures["padded_share"] = round(of.padded_share(OURS), 4)
    return figures


def table(size: str, lengths: str, of: Measured) -> str:
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


def page(measured: dict[str, dict[str, Measured]]) -> str:
    every = [of for by_lengths in measured.values() for of in by_lengths.values()]
    versions = {name: found for of in every for name, found in of.versions.items()}
    used = "\n".join(f"- {name}: " + ", ".join(f"{key} {value}" for key, value in found.items()) for name, found in versions.items())
    not_run = {name: why for of in every for name, why in of.not_run.items()}
    absent = "\n".join(f"- {name}: {why}" for name, why in not_run.items()) or "- none"
    rounds = " and ".join(f"{size.num_rounds} of the {name} size" for name, size in SIZES.items())
    tables = "\n".join(table(size, lengths, of) for size, by_lengths in measured.items() for lengths, of in by_lengths.items())
    bounds = ", ".join(
        f"{size} {lengths} {of.flops_ratio():.2f}" for size, by_lengths in measured.items() for lengths, of in by_lengths.items()
    )
    curves = "\n".join(_curvetable(size, by_lengths["mixed"].losses) for size, by_lengths in measured.items())
    return f"""# Fine-tuning: samples a second against other trainers

`benchmarks/peers/setup.sh; python -m benchmarks training`, on {describe_machine()}. Each size and distribution of lengths is a run of its
own.

fp32, AdamW (no decay), clipping at 1, cosine from {LEARNING_RATE:g}, no gradient checkpointing; {ACCUMULATION_STEPS} micro-batches of
{MICRO_BATCH_SIZE} samples an optimiser step, one worker. Every contender starts from the same frames (uint8, {SIDE} x {SIDE}, 1 a second)
and token ids; decoding is left out (`decode.md` has it). Peers group by length with their own option, and prepare samples between steps:
with a data process of its own transformers' Trainer was slower on two cores (1.61 s against 1.54 s for 32 samples). Ours encodes on one
thread ahead of the step. Medians of rounds in turns ({rounds}), after one that warms up; in brackets the range of the rounds' ratios.
Peak memory is what a process takes beyond its loaded libraries; at the large size and mixed lengths, every contender's still holds
what the round that counts FLOPs needed. Padded is the share of positions in the decoder that belong to no
sample; FLOPs are counted by torch (`FlopCounterMode`), forward and backward.

Clips of mixed length last between the two ends evenly on a logarithmic scale; equal ones are all of the ends' geometric mean. Grouping by
length pads less the more samples it can choose from: with these lengths transformers' grouping pads 7.5 % of the miniature's positions
with 128 samples, 1.4 % with 1,000, 0.4 % with 10,000, and without grouping it is 36 % (computed from its sampler's rule).

{tables}
Where a step is nothing but matrix products, it can only become faster by leaving some out. FLOPs of the thriftiest peer over ours:
{bounds}. A small model's step has much beside them.

## The same training

The same {CURVE_BATCH_SIZE} samples a step in the same order, no grouping; mean loss of a supervised token before step 1, and in the last
step, and how far from ours at most in any step. Two things had to be made the same for that. Peers have the reference implementation's
positions here: transformers 5 places the text after a video elsewhere (`rbft/models/positions.py`), which is another loss from the first
step on. And nothing is accumulated: the peers' Trainer takes the mean of the micro-batches' means for Qwen2.5-VL (its
`accepts_loss_kwargs` is False), ours the mean over all supervised tokens of the global batch. In the timed rounds every peer does as it
does.

![Losses]({CURVES})

{curves}
## Not run here

{absent}

## Versions

{used}
"""


def _curvetable(size: str, losses: dict[str, list[float]]) -> str:
    lines = [f"### {size}", "", "| contender | first | last | largest difference from ours |", "| --- | ---: | ---: | ---: |"]
    for name, values in losses.items():
        apart = max(abs(value - ours) for value, ours in zip(values, losses[OURS], strict=True))
        lines.append(f"| {name} | {values[0]:.4f} | {values[-1]:.4f} | {apart:.5f} |")
    return "\n".join([*lines, ""])


def curves_svg(losses: dict[str, list[float]]) -> str:
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
