"""Frames by PyAV (FFmpeg 8): reads everything on the allow-lists, decodes only the groups of pictures that hold a wanted frame.

Two passes that agree on every sound video. The quick one may use several threads, leaves out frames that no other refers to, and gives up
at the first sign of trouble: a packet that does not decode, a frame that is marked corrupt, interlaced or missing. Then the careful one
starts over with one thread and all frames, and replaces what does not decode. So a damaged video gives the same clip on every machine,
with one exception that we know of: of damaged HEVC FFmpeg does not tell all (in 6 of 80 files that were damaged on purpose).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from rbft.errors import VideoDecodeError
from rbft.video.index import FrameIndex, Opened, decode_packet, read_packets
from rbft.video.pixels import Converter, Fit
from rbft.video.probe import open_video
from rbft.video.spare import spare_test

logger = logging.getLogger(__name__)


_MAX_THREADS = {"hevc": 2}
"""FFmpeg does not report all damage to HEVC, and with four threads shows other pictures there than with one; with two it did not in any of
80 files with random damage. Of the damaged files of other codecs none differed."""

_THREADS_PER_CORE = {"vp9": 2}
"""Its threads have a frame each, and idle while one that is wanted is scaled: with twice as many a video took 6 to 9 % less time on two
cores. Others gained nothing, AV1 lost."""


class _TroubleError(Exception):
    """The quick pass cannot vouch for its frames."""


def read_frames(
    path: str | Path, opened: Opened, index: FrameIndex, frames: np.ndarray, fit: Fit, num_threads: int
) -> Iterator[tuple[int, float, np.ndarray]]:
    """For each of `frames` (places in `index`, increasing): its place in `frames`, its time in seconds and its RGB pixels, upright and
    fitted, uint8 [H, W, 3]. After a change of mind all of them come again, and the later ones count.

    A frame that does not decode is replaced by the last one before it that does, with that one's own time. Raises `VideoDecodeError` if
    none decodes at all.
    """
    if index.by_pts and opened.packets is not None:
        try:
            yield from _quick(opened.stream, opened.packets, index, frames, Converter(fit, num_threads), num_threads)
            return
        except _TroubleError as trouble:
            logger.debug("decoding again with care video=%s reason=%s", path, trouble)
    with open_video(path) as (container, stream):
        needed = zip(read_packets(container, stream), index.packets_for(frames).tolist(), strict=False)
        decoded = _decoded(stream, needed, index, decode_packet)
        yield from _careful(path, decoded, index, frames, Converter(fit, 1))


def _quick(
    stream: Any, packets: list[Any], index: FrameIndex, frames: np.ndarray, converter: Converter, num_threads: int
) -> Iterator[tuple[int, float, np.ndarray]]:
    wanted = index.keys[frames].tolist()
    codec = stream.codec_context
    if num_threads > 1:
        num_threads *= _THREADS_PER_CORE.get(codec.name, 1)
    codec.thread_count, codec.thread_type = min(num_threads, _MAX_THREADS.get(codec.name, num_threads)), "AUTO"
    wanted_keys, is_spare = frozenset(wanted), spare_test(stream, packets)
    needed = zip(packets, index.packets_for(frames).tolist(), strict=True)
    chosen = [(packet, is_needed) for packet, is_needed in needed if not is_needed or packet.pts in wanted_keys or not is_spare(packet)]
    due, place = deque(_frames_due(chosen)), 0
    for key, frame in _decoded(stream, chosen, index, _decode_strictly):
        if due and key >= due[0] and key != due.popleft():
            raise _TroubleError("a frame is missing")
        if place == len(wanted) or key < wanted[place]:
            continue
        if key > wanted[place]:
            raise _TroubleError("a frame is missing")
        if frame.interlaced_frame:  # its other field may be a packet of its own, and have been spared
            raise _TroubleError("a frame is interlaced")
        yield place, index.time_of(key), converter.rgb(frame)
        place += 1
    if due or place < len(wanted):
        raise _TroubleError("a frame is missing")


def _frames_due(packets: Iterable[tuple[Any, bool]]) -> list[int]:
    """The keys of the frames that must come out of the needed ones of `packets`, in order: the decoder does not tell of all that it loses.

    Not those shown before the key packet that decoding begins at: what they refer to may be lacking.
    """
    due, first_pts = [], None
    for packet, is_needed in packets:
        if not is_needed:
            first_pts = None
            continue
        first_pts = packet.pts if first_pts is None else first_pts
        if packet.pts >= first_pts and not packet.is_discard:
            due.append(packet.pts)
    return sorted(due)


def _careful(
    path: str | Path, decoded: Iterable[tuple[int, Any]], index: FrameIndex, frames: np.ndarray, converter: Converter
) -> Iterator[tuple[int, float, np.ndarray]]:
    wanted = index.keys[frames].tolist()
    place, last_key, last = 0, 0, None
    for key, frame in decoded:
        while place < len(wanted) and wanted[place] <= key:
            # At or before: the frame itself, else the last one, else (nothing before it decodes) the first.
            use_this = wanted[place] == key or last is None
            yield place, index.time_of(key if use_this else last_key), converter.rgb(frame if use_this else last)
            place += 1
        if place == len(wanted):
            return
        last_key, last = key, frame
    if last is None:
        raise VideoDecodeError(f"{path}: none of its frames decodes; it is corrupt or encrypted, get it again")
    for rest in range(place, len(wanted)):
        yield rest, index.time_of(last_key), converter.rgb(last)


def _decode_strictly(stream: Any, packet: Any) -> list[Any]:
    try:
        frames: list[Any] = stream.codec_context.decode(packet)
    except MemoryError:
        raise
    except av.error.FFmpegError:
        raise _TroubleError("a packet does not decode") from None
    if any(frame.is_corrupt for frame in frames):
        raise _TroubleError("a frame is corrupt")
    return frames


def _decoded(
    stream: Any, packets: Iterable[tuple[Any, bool]], index: FrameIndex, decode: Callable[[Any, Any], list[Any]]
) -> Iterator[tuple[int, Any]]:
    """Key and frame of everything that comes out of the packets that are needed."""
    num_frames, was_needed = 0, False
    for packet, is_needed in chain(packets, [(None, False)]):
        if not is_needed and not was_needed:
            continue
        for frame in decode(stream, packet if is_needed else None):
            key = frame.pts if index.by_pts else num_frames
            num_frames += 1
            if key is not None:
                yield key, frame
        if not is_needed:
            stream.codec_context.flush_buffers()  # it has given up what it held; at the next key packet it starts afresh
        was_needed = is_needed
