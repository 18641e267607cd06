"""What the benchmark and a contender's process say to each other, and what every contender counts in the same way.

    python -m benchmarks.peers.NAME request.json

The process prepares, writes `{"ready": …}`, and then for each line it reads trains one round (every sample once) and answers with what it
took; at the end of its input it answers `{"losses": […]}` and ends. Messages are lines on the process's own stdout, marked, because
libraries print there too. This module imports torch and numpy alone.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

MARK = "@benchmark "


@dataclass(frozen=True)
class Request:
    """What every contender trains, and how."""

    model: str
    """Folder of the model to start from."""
    samples: str
    """npz: see `load_samples`."""
    folder: str
    """For whatever the contender writes."""
    num_samples: int
    micro_batch_size: int
    accumulation_steps: int
    num_rounds: int
    """With the one that warms up; the learning rate falls along a cosine over all of them."""
    learning_rate: float
    is_grouped: bool
    """With the contender's own length grouping; else the samples in their order, so that all see the same batches."""
    counts_flops: bool
    """In the first round, which is not timed then."""
    num_data_workers: int = 0
    """Processes that prepare samples ahead of the step, for peers that can have them."""
    variant: str = ""
    """Of a contender that has several."""
    extra: dict[str, Any] = field(default_factory=dict)
    """For ours: how the same samples are had from rbft's own data."""

    @property
    def steps_per_round(self) -> int:
        return self.num_samples // (self.micro_batch_size * self.accumulation_steps)

    @property
    def num_steps(self) -> int:
        return self.num_rounds * self.steps_per_round


@dataclass(frozen=True)
class Sample:
    """One conversation about one clip, decoded and tokenised: where every contender starts."""

    frames_TCHW: torch.Tensor
    """uint8"""
    input_ids: list[int]
    """Video tokens expanded."""
    labels: list[int]
    """-100 where not supervised."""
    second_per_grid_ts: float


def read_request() -> Request:
    torch.set_num_threads(torch.get_num_threads())  # as many as there are cores, fixed before any library changes it
    return Request(**json.loads(Path(sys.argv[1]).read_text()))


def load_samples(path: str) -> list[Sample]:
    with np.load(path, allow_pickle=False) as stored:
        return [
            Sample(
                torch.from_numpy(stored[f"frames_{i}"]).permute(0, 3, 1, 2),
                stored[f"input_ids_{i}"].tolist(),
                stored[f"labels_{i}"].tolist(),
                float(stored["second_per_grid_ts"][i]),
            )
            for i in range(len(stored["second_per_grid_ts"]))
        ]


class Rounds:
    """This process's side of the protocol, and its counts."""

    def __init__(self, request: Request) -> None:
        self.request = request
        assert sys.__stdout__ is not None
        self._output = sys.__stdout__  # a library may put another in its place
        self._base_bytes = _memory("VmRSS")
        _forget_peak()  # it counts from here: libraries are loaded, the model is not
        self._losses: dict[int, float] = {}
        self._num_done = 0
        self._started = 0.0
        self._num_positions = self._num_logits = 0
        self._flops: Any = None

    def watch(self, model: Any, is_head_called: bool = True) -> None:
        """Count what goes through the decoder and the language head of `model` (Qwen2_5_VLForConditionalGeneration).

        `is_head_called` False: the contender multiplies with the head's weight itself, for every position.
        """

        def positions(module: Any, args: Any, kwargs: Any) -> None:
            embedded = kwargs.get("inputs_embeds", args[0] if args else None)
            self._num_positions += embedded.shape[0] * embedded.shape[1]
            self._num_logits += 0 if is_head_called else embedded.shape[0] * embedded.shape[1]

        def logits(module: Any, args: Any, output: torch.Tensor) -> None:
            self._num_logits += output.numel() // output.shape[-1]

        model.model.language_model.register_forward_pre_hook(positions, with_kwargs=True)
        model.lm_head.register_forward_hook(logits)

    def say(self, **message: Any) -> None:
        self._output.write(f"{MARK}{json.dumps(message)}\n")
        self._output.flush()

    def ready(self, **facts: Any) -> None:
        self.say(ready={**facts, "python": sys.version.split()[0]})

    def begin(self) -> bool:
        """Wait until the next round is wanted, and start its clock; False if none is."""
        if not sys.stdin.readline().strip():
            return False
        self._num_positions = self._num_logits = 0
        if self.request.counts_flops and self._num_done == 0:
            from torch.utils.flop_counter import FlopCounterMode

            self._flops = FlopCounterMode(display=False, custom_mapping=_cpu_attention())
            self._flops.__enter__()
        self._started = time.perf_counter()
        return True

    def end(self) -> None:
        """The round's last optimiser step has been taken."""
        seconds = time.perf_counter() - self._started
        flops = None
        if self._flops is not None:
            self._flops.__exit__(None, None, None)
            flops, self._flops = self._flops.get_total_flops(), None
        peak_bytes = _memory("VmHWM") - self._base_bytes
        if flops is not None:
            _forget_peak()  # counting needs memory of its own
        self._num_done += 1
        self.say(
            seconds=seconds,
            num_positions=self._num_positions,
            num_logits=self._num_logits,
            flops=flops,
            peak_bytes=peak_bytes,
            library_bytes=self._base_bytes,
        )

    def add_loss(self, step: int, loss: float) -> None:
        """Mean over the supervised tokens of optimiser step `step`, counted from 1."""
        self._losses[step] = loss

    def finish(self) -> None:
        self.say(losses=[self._losses[step] for step in sorted(self._losses)])

    def __iter__(self) -> Iterator[int]:
        """The numbers of the rounds as they are wanted, each timed until the next is asked for."""
        while self.begin():
            yield self._num_done
            self.end()


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _memory(name: str) -> int:
    """Bytes, of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise LookupError(name)


def _cpu_attention() -> dict[Any, Any]:
    """torch counts the products of attention on GPUs only."""
    from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

    aten, mapping = torch.ops.aten, {}
    forward, backward = aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_flash_attention_for_cpu_backward
    if forward not in flop_registry:
        mapping[forward] = lambda query, key, value, *args, out_shape=None, **kwargs: sdpa_flop_count(query, key, value)
    if backward not in flop_registry:
        mapping[backward] = lambda grad, query, key, value, *args, out_shape=None, **kwargs: sdpa_backward_flop_count(
            grad, query, key, value
        )
    return mapping


@contextlib.contextmanager
def errors_told(rounds: Rounds) -> Iterator[None]:
    """What goes wrong is told to the benchmark: that a peer does not run is a finding."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        import traceback

        traceback.print_exc()
        rounds.say(error=f"{type(error).__name__}: {' '.join(str(error).split())[:600]}")
        sys.exit(1)
