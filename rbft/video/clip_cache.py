"""Decoded clips on this machine's disk, so that a video is decoded once and not once an epoch and a stage.

One file a clip, named by the hash of all that its frames depend on (`clip_key`). Several processes and threads share a folder. A file
appears whole, by a rename, and carries a checksum: what was cut short or has changed is no clip. Nothing in a file is code.

    <key>.clip    MAGIC, CRC-32 of the rest, length of the JSON, JSON (the clip's facts), the frames as raw bytes
    <key>….part   a clip that is being written; it has its full size from the start
    total         how many bytes the folder holds, or is about to hold; locked by whoever makes room
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import random
import struct
import tempfile
import threading
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rbft import artifacts, storage
from rbft.errors import ArtifactError
from rbft.records import Clip, Example, VideoSpec

_LOG = logging.getLogger(__name__)

_MAGIC = b"rbft-clip-1\n"
_HEAD = struct.Struct(">II")
_FACTS = ("fps", "source_duration_s", "source_fps", "backend")

_FREED_SHARE = 1 / 16
"""Of the limit, freed at a time when there is no room: the folder is looked through rarely."""

_SHARE_TAKEN_WHEN_FULL = 1 / 4
"""Of the clips for which others would have to go. Epochs come in orders of their own, and with all of them taken nearly every clip is gone
before it is wanted again: of a set twice as large as the cache, 15 % are found; with a quarter taken 35 %, and a new set of videos still
takes the place of an old one within two or three epochs (simulated, 2,000 clips)."""


def clip_key(example: Example, spec: VideoSpec) -> str | None:
    """The hash of all that the clip of `example` depends on: the video's bytes, or its place, size and time where their hash is not known;
    how it is sampled and trimmed; and what decodes it. None if the video cannot be looked at: decoding it says why."""
    if example.sha256 is not None:
        source = [example.sha256]
    else:
        try:
            source = [example.uri, *map(str, storage.stamp(example.uri))]
        except (ArtifactError, OSError):
            return None
    depends_on = {"source": source, "spec": asdict(spec), "trim": [example.start_s, example.end_s], "decoder": _decoder_version()}
    return artifacts.bytes_sha256(json.dumps(depends_on, sort_keys=True).encode())


@cache
def _decoder_version() -> list[str]:
    # The sources of this package, because a version raised by hand would be forgotten.
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return [f"{name} {version(name)}" for name in ("av", "decord", "pillow", "numpy")] + [artifacts.file_sha256(path) for path in sources]


class ClipCache:
    """At most `max_bytes` of clips in `folder`, and never more than half of what its disk would have free without them.

    Thread-safe, and safe with other processes that use the folder. Those longest unused go first. Where the folder cannot be written, or
    its disk is full, no more clips are kept, and a warning says so once. 0 bytes are no cache.
    """

    def __init__(self, folder: str | Path | None, max_bytes: int) -> None:
        """`folder` None is a folder of this user's in the system's temporary directory."""
        self._folder = Path(folder) if folder is not None else Path(tempfile.gettempdir()) / f"rbft-clips-{os.getuid()}"
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._random = random.Random()  # of its own: others may count on the state of the common one
        self._takes_clips = max_bytes > 0
        if max_bytes > 0:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if folder is None and self._folder.lstat().st_uid != os.getuid():
                    raise PermissionError("it belongs to another user")
            except OSError as error:
                self._max_bytes = 0
                self._stop_taking(error)

    def clip(self, example: Example, spec: VideoSpec, decode: Callable[[], Clip]) -> Clip:
        """The clip of `example`, bit for bit what `decode` gives, which is called if it is not here. Errors of `decode` are not kept."""
        key = clip_key(example, spec) if self._max_bytes > 0 else None
        if key is None:
            return decode()
        clip = self._get(key)
        if clip is None:
            clip = decode()
            self._put(key, clip)
        return clip

    def _get(self, key: str) -> Clip | None:
        path = self._path(key)
        try:
            with path.open("rb") as file:
                clip = _read(file)
            os.utime(path)  # used now: the last to go
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _LOG.warning("damaged clip deleted from the cache path=%s error=%s", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        return clip

    def _put(self, key: str, clip: Clip) -> None:
        path = self._path(key)
        head, frames = _head(clip), np.ascontiguousarray(clip.frames_THWC).data.cast("B")
        part = self._folder / f"{key}.{uuid.uuid4().hex}.part"
        if not self._takes_clips or path.exists():
            return
        try:
            try:
                if self._make_room(part, len(head) + len(frames)):
                    with part.open("r+b") as file:
                        file.write(head)
                        file.write(frames)
                    with self._total():  # who counts would miss a file that changes its name meanwhile
                        part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        except FileNotFoundError:
            pass  # somebody made room, and it went before it was whole
        except OSError as error:
            self._stop_taking(error)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.clip"

    def _stop_taking(self, error: OSError) -> None:
        with self._lock:
            is_news, self._takes_clips = self._takes_clips, False
        if is_news:
            _LOG.warning("no more clips are cached folder=%s error=%s", self._folder, error)

    def _make_room(self, part: Path, num_bytes: int) -> bool:
        """Make the file `part` of `num_bytes` bytes, and room for it; False if the clip is not to be kept."""
        with self._total() as total_file:
            text = total_file.read()
            total = int(text) if text.isdigit() else self._free(math.inf)
            limit = self._limit(total)
            low = limit - int(limit * _FREED_SHARE)
            if num_bytes > limit:
                return False
            if total + num_bytes > low and self._random.random() > _SHARE_TAKEN_WHEN_FULL:
                return False
            if total + num_bytes > limit:
                total = self._free(max(0, low - num_bytes))
            # Before the file is there: if this process dies in between, the total is too large, and the next who frees counts anew.
            total_file.seek(0)
            total_file.truncate()
            total_file.write(b"%d" % (total + num_bytes))
            total_file.flush()
            with part.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, num_bytes)
        return True

    @contextlib.contextmanager
    def _total(self) -> Iterator[BinaryIO]:
        with open(os.open(self._folder / "total", os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by the death of its process
            yield file

    def _limit(self, total: int) -> int:
        disk = os.statvfs(self._folder)
        return min(self._max_bytes, (disk.f_bavail * disk.f_frsize + total) // 2)

    def _free(self, max_total: float) -> int:
        """Delete the clips longest unused until at most `max_total` bytes are left; how many are."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith((".clip", ".part")):
                    with contextlib.suppress(FileNotFoundError):
                        found.append((entry.stat().st_mtime_ns, entry.name, entry.stat().st_size))
        total = sum(size for _, _, size in found)
        for _, name, size in sorted(found):
            if total <= max_total:
                break
            (self._folder / name).unlink(missing_ok=True)
            total -= size
        return total


def _head(clip: Clip) -> bytes:
    facts = {name: getattr(clip, name) for name in _FACTS} | {"timestamps_s": clip.timestamps_s, "shape": clip.frames_THWC.shape}
    text = json.dumps(facts).encode()  # Python writes a float so that it is read back as the same
    checksum = zlib.crc32(np.ascontiguousarray(clip.frames_THWC).data.cast("B"), zlib.crc32(text))
    return _MAGIC + _HEAD.pack(checksum, len(text)) + text


def _read(file: BufferedReader) -> Clip:
    """The clip in `file`; raises `ValueError` if it is not one, or not as it was written."""
    head = file.read(len(_MAGIC) + _HEAD.size)
    if len(head) < len(_MAGIC) + _HEAD.size or not head.startswith(_MAGIC):
        raise ValueError("not a clip")
    checksum, text_size = _HEAD.unpack(head[len(_MAGIC) :])
    num_bytes = os.fstat(file.fileno()).st_size - len(head) - text_size
    if num_bytes < 0:
        raise ValueError("cut short")
    text = file.read(text_size)
    frames = np.empty(num_bytes, dtype=np.uint8)
    if file.readinto(frames.data) != num_bytes:
        raise ValueError("cut short")
    if zlib.crc32(frames.data, zlib.crc32(text)) != checksum:
        raise ValueError("its bytes have changed")
    facts = json.loads(text)
    return Clip(frames.reshape(facts["shape"]), tuple(facts["timestamps_s"]), **{name: facts[name] for name in _FACTS})
