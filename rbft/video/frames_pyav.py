"""Frames by PyAV (FFmpeg 8): reads everything on the allow-lists, decodes only the groups of pictures that hold a wanted frame."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter

from rbft.errors import VideoDecodeError
from rbft.video.index import FrameIndex, decode_packet, read_packets
from rbft.video.pixels import upright
from rbft.video.probe import open_video, orientation_of


def read_frames(path: str | Path, index: FrameIndex, frames: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """For each of `frames` (places in `index`, increasing): its time in seconds and its RGB pixels, upright, uint8 [H, W, 3].

    A frame that does not decode is replaced by the last one before it that does, with that one's own time. Raises `VideoDecodeError` if
    none decodes at all.
    """
    wanted = [int(key) for key in index.keys[frames]]
    with open_video(path) as (container, stream):
        rgb = VideoReformatter()
        last_key, last = 0, None
        for key, frame in _decoded(container, stream, index, index.packets_for(frames)):
            while wanted and wanted[0] <= key:
                # At or before: the frame itself, else the last one, else (nothing before it decodes) the first.
                use_this = wanted[0] == key or last is None
                yield _pixels(rgb, index, key if use_this else last_key, frame if use_this else last)
                wanted.pop(0)
            if not wanted:
                return
            last_key, last = key, frame
        if last is None:
            raise VideoDecodeError(f"{path}: none of its frames decodes; it is corrupt or encrypted, get it again")
        for _ in wanted:
            yield _pixels(rgb, index, last_key, last)


def _decoded(container: Any, stream: Any, index: FrameIndex, needed: np.ndarray) -> Iterator[tuple[int, Any]]:
    """Key and frame of everything that comes out of the needed packets."""
    num_frames, was_needed = 0, False
    packets = zip(read_packets(container, stream), needed, strict=False)
    for packet, is_needed in chain(packets, [(None, False)]):
        if not is_needed and not was_needed:
            continue
        for frame in decode_packet(stream, packet if is_needed else None):
            key = frame.pts if index.by_pts else num_frames
            num_frames += 1
            if key is not None:
                yield key, frame
        if not is_needed:
            stream.codec_context.flush_buffers()  # it has given up what it held; at the next key packet it starts afresh
        was_needed = is_needed


def _pixels(reformatter: VideoReformatter, index: FrameIndex, key: int, frame: Any) -> tuple[float, np.ndarray]:
    rgb = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    return index.time_of(key), upright(rgb, orientation_of(frame))
