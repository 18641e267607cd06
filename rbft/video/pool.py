"""Decoding that cannot hurt its caller: a pool of reused child processes, each with a deadline and a memory limit.

A decoder can hang for ever holding the interpreter's lock, deaf to SIGTERM, or take its process with it. So each video is decoded in a
child that is killed when its time is up and replaced; that video becomes a `VideoError` and the next one goes on. Plain subprocesses, not
multiprocessing: nothing is forked that has threads, and nothing of the caller's `__main__` is imported again.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

import rbft
from rbft.errors import DecoderCrashError, DecoderStartError, VideoError, VideoMemoryError, VideoTimeoutError, error_from_code
from rbft.records import Clip, VideoSpec
from rbft.storage import local_copy
from rbft.video.child import LENGTH
from rbft.video.confine import child_environment
from rbft.video.limits import NO_LIMITS, SourceLimits

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 120.0
"""For a quarter of a second of work: a machine may be that busy."""

_MAX_VIDEOS_PER_CHILD = 256
"""decord loses some memory with every video; a fresh child costs 0.3 s."""

_MAX_MESSAGE_BYTES = 16 << 20

_PIPE_BYTES = 1 << 20
"""Of a child's pipe: 27 MB of frames go through in two thirds of the time that the kernel's 64 KiB take."""

_CLIP_FIELDS = ("fps", "source_duration_s", "source_fps", "backend")


class DecodePool:
    """Up to `num_workers` videos decoded at a time, each in a process of its own. Threads may call it concurrently.

    A context manager; children start when first needed and end with `close` or with this process, however it ends.
    """

    def __init__(
        self, num_workers: int = 2, timeout_s: float = 60.0, memory_limit_bytes: int = 4 << 30, limits: SourceLimits = NO_LIMITS
    ) -> None:
        self.timeout_s = timeout_s
        """For one video."""
        self.memory_limit_bytes = memory_limit_bytes
        """Private memory of one child."""
        self._limits = limits
        # As many threads as children, each with its own: videos are taken in the order they came. The threads live as long as the pool,
        # and must: a child that is to die with its parent dies with the *thread* that started it.
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="rbft-decode")
        self._num_workers = num_workers
        self._num_active = 0
        self._own = threading.local()
        self._lock = threading.Lock()
        self._children: set[_Child] = set()
        self._is_closed = False

    def decode(self, uri: str | Path, spec: VideoSpec, start_s: float | None = None, end_s: float | None = None) -> Clip:
        """The clip of the video at `uri` (a path or a URI of any pyarrow filesystem), as `rbft.video.decode.decode` defines it.

        Waits for its turn first; the deadline counts from there. Raises a `VideoError`, the most specific one: also
        `VideoTimeoutError`, `VideoMemoryError`, `DecoderCrashError` and, where no decoder starts, `DecoderStartError`.
        """
        return self._threads.submit(self._decode, uri, spec, start_s, end_s).result()

    async def decode_async(self, uri: str | Path, spec: VideoSpec, start_s: float | None = None, end_s: float | None = None) -> Clip:
        """`decode` for an event loop, which goes on meanwhile."""
        return await asyncio.wrap_future(self._threads.submit(self._decode, uri, spec, start_s, end_s))

    def duration_s(self, path: str | Path) -> float | None:
        """How long the local video at `path` says it is, in seconds; None if it does not say. Raises as `decode` does."""
        return self._threads.submit(lambda: self._child().duration_s(str(path), self.timeout_s)).result()

    def close(self) -> None:
        """End all children. A decode under way raises `DecoderCrashError`, a waiting one `CancelledError`, a later one `RuntimeError`."""
        with self._lock:
            self._is_closed = True
            children = list(self._children)
        for child in children:
            child.kill()
        self._threads.shutdown(cancel_futures=True)
        for child in children:
            child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _decode(self, uri: str | Path, spec: VideoSpec, start_s: float | None, end_s: float | None) -> Clip:
        with local_copy(str(uri)) as path:
            request = {"path": str(path), "spec": asdict(spec), "start_s": start_s, "end_s": end_s, "limits": asdict(self._limits)}
            try:
                with self._lent_threads() as num_threads:
                    return self._child().decode(request | {"num_threads": num_threads}, self.timeout_s)
            except VideoError as error:
                if "://" not in str(uri):
                    raise
                # The caller knows the URI, not the copy; a query string may be a secret.
                raise type(error)(str(error).replace(str(path), str(uri).partition("?")[0])) from None

    @contextmanager
    def _lent_threads(self) -> Iterator[int]:
        """How many threads a video that starts now may have: one core a worker, and its share of the cores of those that are idle."""
        with self._lock:
            self._num_active += 1
            num_threads = max(1, min(self._num_workers, len(os.sched_getaffinity(0))) // self._num_active)
        try:
            yield num_threads
        finally:
            with self._lock:
                self._num_active -= 1

    def _child(self) -> _Child:
        """This thread's child, a new one if there is none that can take another video."""
        child: _Child | None = getattr(self._own, "child", None)
        if child is not None:
            if child.is_alive and child.num_videos < _MAX_VIDEOS_PER_CHILD:
                return child
            child.close()
            self._children.discard(child)
        with self._lock:  # so that `close` sees every child there is
            if self._is_closed:
                raise DecoderCrashError("the decode pool has been closed")
            child = self._own.child = _Child(self.memory_limit_bytes)
            self._children.add(child)
        child.wait_until_ready()
        return child


class _Child:
    """One child process and its two pipes. One thread at a time uses it; `kill` may come from any."""

    def __init__(self, memory_limit_bytes: int) -> None:
        environment = child_environment(os.environ)
        # The child finds this very rbft, however its parent found it, and nothing in the folder it happens to start in (-P).
        root = str(Path(rbft.__file__).parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
        # One decode, one core.
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "rbft.video.child", str(os.getpid()), str(memory_limit_bytes)]
        self._memory_limit_bytes = memory_limit_bytes
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0)
        except OSError as error:  # too many processes or files, no memory
            raise DecoderStartError(f"the decoder process cannot start ({error.strerror}); free what it lacks") from None
        assert self._process.stdout is not None
        with suppress(PermissionError):  # a user with many pipes gets no more memory for them, and goes on with small ones
            fcntl.fcntl(self._process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self.num_videos = 0
        self.backend: str | None = None
        """The decoder that was at work last."""

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process now; harmless if it has ended."""
        self._process.kill()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # in the kernel, on a dead network disk: nobody can end it, so nobody waits for it
            logger.warning("decoder process does not end pid=%d", self._process.pid)

    def close(self) -> None:
        """End the process and close its pipes, when no thread reads from them any more."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def wait_until_ready(self) -> None:
        """Raise `DecoderStartError` if the child cannot start: the installation is at fault, not a video."""
        try:
            ready = self._read_message(time.monotonic() + _START_TIMEOUT_S)
        except (TimeoutError, EOFError, ValueError) as error:
            self.kill()
            raise DecoderStartError(f"the decoder process cannot start ({error}); its stderr says why, `rbft doctor` may too") from None
        if ready.get("unconfined"):
            logger.warning("decoder processes may open sockets: %s", ready["unconfined"])

    def decode(self, request: dict[str, Any], timeout_s: float) -> Clip:
        """The clip that the child makes of `request`, or the `VideoError`. After a timeout or a crash the child is gone."""
        answer, frames_THWC = self._ask(request, timeout_s)
        if frames_THWC is None:  # taken over by the file, say
            raise DecoderCrashError(f"{request['path']}: its decoder process answered without a clip; leave the video out")
        return Clip(frames_THWC, tuple(answer["timestamps_s"]), **{name: answer[name] for name in _CLIP_FIELDS})

    def duration_s(self, path: str, timeout_s: float) -> float | None:
        """What the header of the video at `path` says, or the `VideoError`, as `decode`."""
        duration_s: float | None = self._ask({"path": path, "probe": True}, timeout_s)[0]["duration_s"]
        return duration_s

    def _ask(self, request: dict[str, Any], timeout_s: float) -> tuple[dict[str, Any], np.ndarray | None]:
        self.num_videos += 1
        self.backend = None
        path = request["path"]
        try:
            answer, frames_THWC = self._exchange(request, time.monotonic() + timeout_s)
        except TimeoutError:
            advice = "raise video.timeout_s or re-encode the video"
            raise VideoTimeoutError(f"{path}: not decoded in {timeout_s:g} s, its decoder was killed; {advice}") from None
        except (EOFError, BrokenPipeError, ValueError) as error:
            raise DecoderCrashError(f"{path}: its decoder process died ({error}); re-encode the video or leave it out") from None
        if answer["kind"] == "error":
            raise error_from_code(answer["code"], answer["message"])
        return answer, frames_THWC

    def _exchange(self, request: dict[str, Any], deadline: float) -> tuple[dict[str, Any], np.ndarray | None]:
        """The child's last message and, with a clip, its pixels. Raises `TimeoutError`, `EOFError`, `BrokenPipeError`, `ValueError`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            while (answer := self._read_message(deadline))["kind"] not in ("clip", "duration", "error"):
                if answer["kind"] == "backend":
                    self.backend = answer["backend"]
                    logger.debug("decoding video=%s backend=%s", request["path"], self.backend)
                elif answer["kind"] == "log":
                    logger.log(answer["level"], "%s", answer["message"])
            if answer["kind"] == "error":
                if answer["code"] == VideoMemoryError.code:
                    self.kill()  # what memory it still has is in pieces; the next video gets a fresh child
            if answer["kind"] != "clip":
                return answer, None
            if (num_bytes := math.prod(answer["shape"])) > self._memory_limit_bytes:
                raise ValueError(f"a clip of {num_bytes} bytes")
            frames_THWC = np.empty(answer["shape"], dtype=np.uint8)
            self._read_into(frames_THWC.data.cast("B"), deadline)
            return answer, frames_THWC
        except BaseException:  # whatever it was, the next answer in the pipe would be to this request
            self.kill()
            raise

    def _read_message(self, deadline: float) -> dict[str, Any]:
        head = bytearray(LENGTH.size)
        self._read_into(memoryview(head), deadline)
        (size,) = LENGTH.unpack(head)
        if size > _MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {size} bytes")
        body = bytearray(size)
        self._read_into(memoryview(body), deadline)
        message: dict[str, Any] = json.loads(body)
        return message

    def _read_into(self, buffer: memoryview, deadline: float) -> None:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while buffer:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError("no answer in time")
            num_read = os.readv(pipe, [buffer])
            if num_read == 0:
                raise EOFError(self._how_it_ended())
            buffer = buffer[num_read:]

    def _how_it_ended(self) -> str:
        self.kill()
        code = self._process.returncode
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
