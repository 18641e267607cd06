"""Where the frames of a video really are, from its packets: the truth both decoders are held to.

Headers lie about durations and counts, and average rates say nothing about variable ones, so the whole file is read once without decoding
(60 s of video in a few hundredths of a second). Only where packets carry no presentation times are the frames decoded to learn them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from rbft.errors import VideoDecodeError
from rbft.video.limits import NO_LIMITS, SourceLimits
from rbft.video.probe import open_video, reason_of

logger = logging.getLogger(__name__)

_TOLERANCE_S = 1e-3
"""Matroska rounds times to milliseconds: a frame this little after the sample time is the frame at that time."""

_MAX_KEPT_BYTES = 256 << 20
"""Packets are kept from reading the index for decoding; those of a longer video are read twice."""

_MIN_SHARE_PRESENT = 0.9
"""A file whose packets end before this share of the duration its header gives has been cut short."""


@dataclass(frozen=True)
class FrameIndex:
    """The frames of a video in the order they are shown."""

    times_s: np.ndarray
    """float64 [num_frames], not decreasing; the first is 0."""
    keys: np.ndarray
    """int64 [num_frames]: what a decoded frame is known by; its pts if `by_pts`, else its place in the decoder's output."""
    by_pts: bool
    duration_s: float
    """To the end of the last frame; more than 0."""
    packet_pts: np.ndarray
    """int64 [num_packets] in file order; empty unless `by_pts`."""
    packet_is_key: np.ndarray
    """bool [num_packets]."""

    @property
    def num_frames(self) -> int:
        return len(self.times_s)

    @property
    def fps(self) -> float:
        """The true average rate."""
        return self.num_frames / self.duration_s

    @property
    def has_open_groups(self) -> bool:
        """Whether some frame is shown before the key packet that it follows in the file, and so needs the group before."""
        if not self.by_pts or not self.packet_is_key.any():
            return False
        group = np.cumsum(self.packet_is_key) - 1
        key_pts = self.packet_pts[self.packet_is_key]
        return bool((self.packet_pts[group >= 0] < key_pts[group[group >= 0]]).any())

    def time_of(self, key: int) -> float:
        """Seconds from the first frame at which the frame known by `key` is shown."""
        return float(np.interp(key, self.keys, self.times_s))

    def at(self, times_s: Sequence[float], end_s: float) -> np.ndarray:
        """int64, one a sample time: which frame is on the screen then (the last one at or before it), never one at or after `end_s`."""
        last = max(int(np.searchsorted(self.times_s, end_s - _TOLERANCE_S, side="left")) - 1, 0)
        frames = np.searchsorted(self.times_s, np.asarray(times_s) + _TOLERANCE_S, side="right") - 1
        return np.clip(frames, 0, last)

    def packets_for(self, frames: np.ndarray) -> np.ndarray:
        """bool [num_packets]: which packets to decode for these frames; from each one's key packet up to its own.

        A frame shown before the key packet it follows in the file (open GOP) needs the group before, too.
        """
        if not self.by_pts:
            return np.ones(len(self.packet_is_key), dtype=bool)
        needed = np.zeros(len(self.packet_pts), dtype=bool)
        starts = np.flatnonzero(self.packet_is_key)
        for packet in np.flatnonzero(np.isin(self.packet_pts, self.keys[frames])):
            group = int(np.searchsorted(starts, packet, side="right")) - 1
            if group >= 0 and self.packet_pts[packet] < self.packet_pts[starts[group]]:
                group -= 1
            needed[starts[group] if group >= 0 else 0 : packet + 1] = True
        return needed


@dataclass(frozen=True)
class Opened:
    """A video whose packets have been read once."""

    stream: Any
    """PyAV's, of an open container; its decoder has not been started."""
    packets: list[Any] | None
    """Of the stream, in file order; None if they are too large to keep, and must be read from the file again."""


@contextmanager
def open_index(path: str | Path, limits: SourceLimits = NO_LIMITS) -> Iterator[tuple[Opened, FrameIndex]]:
    """The opened video at `path` and its index, read no further than `limits` allow.

    Raises as `rbft.video.probe.open_video` does; `VideoDecodeError` if the file is cut short.
    """
    with open_video(path, limits) as (container, stream):
        video, kept, num_kept_bytes = [], [], 0
        ends = [0] * len(container.streams)  # in each stream's own units
        for packet in read_packets(container):
            pts, duration = packet.pts, packet.duration or 0
            if pts is not None:
                ends[packet.stream_index] = max(ends[packet.stream_index], pts + duration)
            if packet.stream_index == stream.index:
                video.append((pts, duration, packet.is_keyframe, not packet.is_discard))
                limits.check_frames(len(video))
                num_kept_bytes += packet.size
                if num_kept_bytes <= _MAX_KEPT_BYTES:
                    kept.append(packet)
        ends_s = [float(end * any_stream.time_base) for end, any_stream in zip(ends, container.streams, strict=True) if end]
        _check_whole(path, container, max(ends_s, default=0.0))
        opened = Opened(stream, kept if len(kept) == len(video) else None)
        index = _index_of(path, container, stream, video)
        limits.check_duration(index.duration_s)
        yield opened, index


def read_index(path: str | Path) -> FrameIndex:
    """The index of the video at `path`, as `open_index` gives it."""
    with open_index(path) as (_, index):
        return index


def _index_of(path: str | Path, container: Any, stream: Any, video: list[tuple[int | None, int, bool, bool]]) -> FrameIndex:
    pts, durations, is_key, is_shown = (list(column) for column in zip(*video, strict=True)) if video else ([], [], [], [])
    if not any(is_shown):
        raise VideoDecodeError(f"{path}: holds no frame of video; it is cut short or only a header, get it again")
    rate = stream.average_rate or stream.guessed_rate
    interval_s = float(1 / rate) if rate else 1 / 25
    # AVI has no presentation times: FFmpeg numbers its packets in file order, which B-frames are not shown in.
    if any(time is None for time in pts) or (container.format.name == "avi" and stream.codec_context.has_b_frames):
        return _index_by_decoding(path, len(pts), interval_s)
    packet_pts = np.asarray(pts, dtype=np.int64)
    keys = np.unique(packet_pts[np.asarray(is_shown)])
    times_s = (keys - keys[0]) * float(stream.time_base)
    last_s = float(durations[pts.index(int(keys[-1]))] * stream.time_base) or _typical_gap(times_s) or interval_s
    return FrameIndex(times_s, keys, True, float(times_s[-1]) + last_s, packet_pts, np.asarray(is_key))


def read_packets(container: Any, *streams: Any) -> Iterator[Any]:
    """The packets of a PyAV container (of the given streams) up to its end or to where it cannot be read on, the same each time."""
    try:
        for packet in container.demux(*streams):
            if packet.size or packet.dts is not None:  # the last, empty ones stand for "no more"
                yield packet
    except MemoryError:
        raise
    except av.error.FFmpegError as error:
        logger.info("%s: cannot be read to its end (%s)", container.name, reason_of(error))


def _check_whole(path: str | Path, container: Any, reached_s: float) -> None:
    if not container.duration:
        return
    claimed_s = container.duration / av.time_base
    found_s = reached_s - (container.start_time or 0) / av.time_base
    if found_s < claimed_s * _MIN_SHARE_PRESENT - 1:
        raise VideoDecodeError(f"{path}: ends after {max(found_s, 0):.1f} s of {claimed_s:.1f} s; it is cut short, get it again")


def _index_by_decoding(path: str | Path, num_packets: int, interval_s: float) -> FrameIndex:
    with open_video(path) as (container, stream):
        pts = [frame.pts for packet in chain(read_packets(container, stream), [None]) for frame in decode_packet(stream, packet)]
    if not pts:
        raise VideoDecodeError(f"{path}: none of its {num_packets} packets decodes; it is corrupt or encrypted, get it again")
    keys = np.arange(len(pts))
    times_s = keys * interval_s
    if None not in pts and (np.diff(pts) > 0).all():
        times_s = (np.asarray(pts) - pts[0]) * float(stream.time_base)
    duration_s = float(times_s[-1]) + (_typical_gap(times_s) or interval_s)
    return FrameIndex(times_s, keys, False, duration_s, np.empty(0, dtype=np.int64), np.ones(num_packets, dtype=bool))


def decode_packet(stream: Any, packet: Any) -> list[Any]:
    """The frames that come out when `packet` goes in (None: what the decoder still holds); none for a corrupt packet."""
    try:
        return list(stream.codec_context.decode(packet))
    except MemoryError:
        raise
    except av.error.FFmpegError as error:
        logger.debug("packet skipped (%s)", reason_of(error))
        return []


def _typical_gap(times_s: np.ndarray) -> float:
    return float(np.median(np.diff(times_s))) if len(times_s) > 1 else 0.0
