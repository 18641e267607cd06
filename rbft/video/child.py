"""The child process that decodes: one request a line on stdin, messages on stdout. Started by `rbft.video.pool`, never by hand.

A message is a 4-byte big-endian length, that many bytes of JSON (`kind` and its fields), and, for a clip, its pixels as raw bytes:
    ready       it can take requests; `unconfined` says why `rbft.video.confine` cannot hold it here, None if it does
    backend     decoder `backend` starts now
    log         `level`, `message`, to be logged by the parent
    duration    `duration_s` of a video that was only to be probed
    clip        the fields of `Clip`, `shape`; then the pixels
    error       `code`, `message` of a `VideoError`
It imports numpy, Pillow and PyAV (decord when it is asked for), nothing heavier, and ends with its parent.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import struct
import sys
from typing import Any, BinaryIO

from rbft.errors import VideoDecodeError, VideoError
from rbft.parent import die_with_parent
from rbft.records import VideoSpec

LENGTH = struct.Struct(">I")


def main() -> None:
    """Arguments: the parent's process id and the memory limit in bytes."""
    parent_pid, memory_limit_bytes = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent_pid)
    # The messages get a descriptor of their own: a library that prints goes to stderr.
    messages = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    from rbft.video.confine import forbid_calls
    from rbft.video.landlock import forbid_changes

    # Before libraries are loaded, whose threads would stay free of it. `rbft doctor` says whether this machine can do the former.
    forbid_changes()
    unconfined = forbid_calls()
    from rbft.video.decode import decode  # loaded now, so that a request pays for decoding only
    from rbft.video.limits import SourceLimits
    from rbft.video.probe import probe

    # Private writable memory. The address space would count what is only reserved, too: thread stacks, arenas, mapped libraries.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_limit_bytes, memory_limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _forward_logs(messages)
    send(messages, "ready", unconfined=unconfined)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            if request.get("probe"):
                send(messages, "duration", duration_s=probe(request["path"]).duration_s)
                continue
            clip = decode(
                request["path"],
                VideoSpec(**request["spec"]),
                request["start_s"],
                request["end_s"],
                announce=lambda backend: send(messages, "backend", backend=backend),
                num_threads=request["num_threads"],
                limits=SourceLimits(**request["limits"]),
            )
        except VideoError as error:
            send(messages, "error", code=error.code, message=str(error))
        except Exception as error:  # noqa: BLE001  # a file must not be able to end its reader; the parent makes it an error row
            reason = f"{request['path']}: cannot be decoded ({type(error).__name__}: {error}); get it again or re-encode it"
            send(messages, "error", code=VideoDecodeError.code, message=" ".join(reason.split()))
        else:
            pixels = clip.frames_THWC
            fields = {name: value for name, value in vars(clip).items() if name != "frames_THWC"}
            send(messages, "clip", pixels.data.cast("B"), shape=pixels.shape, **fields)


def send(messages: BinaryIO, kind: str, payload: Any = b"", **fields: Any) -> None:
    """Write one message."""
    body = json.dumps({"kind": kind, **fields}).encode()
    messages.write(LENGTH.pack(len(body)) + body)
    messages.write(payload)
    messages.flush()


def _die_with(parent_pid: int) -> None:
    die_with_parent()  # a decoder that hangs holds the interpreter and would notice nothing by itself
    if os.getppid() != parent_pid:
        sys.exit("the parent is gone")


def _forward_logs(messages: BinaryIO) -> None:
    class ToParent(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            send(messages, "log", level=record.levelno, message=record.getMessage())

    logging.basicConfig(level=logging.INFO, handlers=[ToParent()])


if __name__ == "__main__":
    main()
