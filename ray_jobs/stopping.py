"""How a training job under Ray is stopped: by its driver's signals, by a SIGTERM to a worker, by Ray's notice that a node goes.

The driver asks by a file in the run's folder, on a disk that it shares with the workers or in a store: it reaches them whatever Ray is busy
with. Workers save and return; what follows, the driver decides (`ray_jobs.training_workers`).
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import ray.train
from ray.train.torch import TorchConfig

from ray_jobs.progress import say
from rbft import storage
from rbft.errors import ArtifactError
from rbft.training.stop import StopRequest, on_sigterm

PREEMPTED = "a node is about to be taken away"
TERMINATED = "SIGTERM to a worker"

_LOOK_EVERY_S = 1.0
_LOOK_IN_STORE_EVERY_S = 5.0
"""How often rank 0 looks for the file."""

_REQUEST = StopRequest()
"""Of this process, if it is a worker: a signal's handler and the training thread share it."""


class StoppableTorchConfig(TorchConfig):
    """Ray's `TorchConfig`, whose workers take a SIGTERM as a wish to stop.

    Ray Train runs a stage in a thread, where signals' handlers cannot be set; what a backend executes at the start runs in the main one.
    """

    @property
    def backend_cls(self) -> type[Any]:
        return _StoppableBackend


class _StoppableBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        super().on_start(worker_group, backend_config)
        worker_group.execute(_listen)


def _listen() -> None:
    on_sigterm(_REQUEST, TERMINATED)


class WorkerControls:
    """`rbft.training.stop.Controls` of a Ray Train worker."""

    def __init__(self, stop_file: str) -> None:
        self._stop_file = stop_file
        self._look_every_s = _LOOK_EVERY_S if storage.is_local(stop_file) else _LOOK_IN_STORE_EVERY_S
        self._looks = ray.train.get_context().get_world_rank() == 0
        self._looked_s = 0.0

    def stop_reason(self) -> str | None:
        """A SIGTERM to this worker, or what the driver has written."""
        if self._looks and time.monotonic() - self._looked_s > self._look_every_s:
            with contextlib.suppress(OSError, ArtifactError):  # a store that does not answer is no wish to stop
                if (asked := read_stop_file(self._stop_file)) is not None:
                    _REQUEST.ask(asked)
            self._looked_s = time.monotonic()
        return _REQUEST.stop_reason()

    def notice(self) -> str | None:
        """Whether Ray knows that a node of these workers will be taken away. A barrier."""
        return None if ray.train.get_preemption_info() is None else PREEMPTED


def write_stop_file(uri: str, reason: str) -> None:
    storage.write_bytes(uri, reason.encode())


def read_stop_file(uri: str) -> str | None:
    """Why the driver asks to stop; None if it does not."""
    return storage.read_bytes(uri).decode() if storage.exists(uri) else None


class DriverStop:
    """A context manager within which the first Ctrl-C or SIGTERM to this process asks the workers to save and stop, and a second one does
    what it did before. `call` waits for them."""

    def __init__(self, stop_file: str) -> None:
        self._stop_file = stop_file
        self._before: dict[int, Any] = {}
        self.signal: signal.Signals | None = None
        """The one that came."""

    def __enter__(self) -> DriverStop:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        storage.delete_file(self._stop_file)

    def call(self, function: Callable[[], Any]) -> Any:
        """What `function()` gives, or raises, in a thread of its own: `trainer.fit()` would take Ctrl-C for itself, and end the workers."""
        outcome: list[Any] = [None, None]

        def run() -> None:
            try:
                outcome[0] = function()
            except BaseException as error:  # noqa: BLE001 - raised again by the waiting thread
                outcome[1] = error

        thread = threading.Thread(target=run, daemon=True, name="rbft-fit")
        thread.start()
        while thread.is_alive():
            thread.join(0.2)  # signals are handled between two of these
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()
        write_stop_file(self._stop_file, "Ctrl-C" if number == signal.SIGINT else f"{self.signal.name} to the job")
        say("train: stopping after this step, to go on from there later; a second signal ends the job at once")

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}
