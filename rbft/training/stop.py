"""What may end a stage before its last step, and what the workers agree on between two steps.

A worker that is told to stop tells the others with the flags of the next step (`forward_backward`): all of them save at the same step and
leave with `TrainingStopped`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import torch.distributed as dist

from rbft.config import TrainingConfig

NOTICE_EVERY_S = 5.0
"""How often `Controls.notice` is asked. Clouds give 30 to 120 seconds between the notice and the end."""


class Controls(Protocol):
    """How whoever runs a stage can stop it; asked on every worker."""

    def stop_reason(self) -> str | None:
        """Why this worker is to stop, for people; None to go on. Asked at every step: must be quick."""

    def notice(self) -> str | None:
        """The same, where asking takes all workers together (a barrier) or a while. Asked on all of them alike, every few seconds."""


class StopRequest:
    """`Controls` that anybody in the process can ask to stop: another thread, or a signal's handler. Nobody else does."""

    def __init__(self) -> None:
        self._reason: str | None = None

    def ask(self, reason: str) -> None:
        """Stop at the end of this step or the next, and save. The first reason stays."""
        self._reason = self._reason or reason

    def stop_reason(self) -> str | None:
        return self._reason

    def notice(self) -> str | None:
        return None


def on_sigterm(request: StopRequest, reason: str) -> None:
    """Let the first SIGTERM to this process ask `request` to stop, and a second one do what SIGTERM did before. Main thread only."""
    before: Callable[[int, FrameType | None], Any] | int | None = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        request.ask(reason)
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)

    signal.signal(signal.SIGTERM, handle)


@dataclass(frozen=True)
class StepEnd:
    """What all ranks agree on at the end of a step."""

    stop_reason: str | None
    """Why all of them stop now."""
    saves: bool
    """Whether a checkpoint is due."""
    write_failed: bool
    """Whether one of them could not write the checkpoint before."""


class StepFlags:
    """What this rank tells the others with each step, and what it means when all have told."""

    def __init__(self, training: TrainingConfig, controls: Controls) -> None:
        self._training, self._controls = training, controls
        self._saved_s = self._noticed_s = time.monotonic()

    def here(self, write_failed: bool) -> tuple[float, ...]:
        """This rank's flags. Of clocks, rank 0's counts."""
        is_first, now = dist.get_rank() == 0, time.monotonic()
        minutes = self._training.checkpoint_every_minutes
        flags = (
            self._controls.stop_reason() is not None,
            write_failed,
            is_first and minutes is not None and now - self._saved_s >= 60 * minutes,
            is_first and now - self._noticed_s >= NOTICE_EVERY_S,
        )
        return tuple(map(float, flags))

    def agreed(self, step: int, flags: tuple[float, ...]) -> StepEnd:
        """What follows from the largest `flags` of all ranks after optimiser step `step` (from 1). Every rank calls this."""
        asked, write_failed, minutes_over, looks = map(bool, flags)
        reason = self._controls.stop_reason()
        if looks:
            self._noticed_s = time.monotonic()
            reason = reason or self._controls.notice()
        stop_reason = _first_of_all_ranks(reason) if asked or looks else None
        saves = minutes_over or step % self._training.checkpoint_every_steps == 0
        if saves:
            self._saved_s = time.monotonic()
        return StepEnd(stop_reason, saves, write_failed)


def _first_of_all_ranks(reason: str | None) -> str | None:
    gathered: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, reason)
    return next((each for each in gathered if each is not None), None)
