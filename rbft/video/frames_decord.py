"""Frames by decord (FFmpeg 4.1): fast on plain H.264, HEVC and VP9 in MP4 and Matroska, and used for nothing else.

decord can hang for ever, returns other frames for broken ones without a word, and follows playlists. So it gets only files whose first
bytes leave no doubt, its idea of the frames must be the index's, and a frame it had to make up is an error. It turns frames upright itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rbft.errors import VideoDecodeError, VideoFormatError
from rbft.video.index import FrameIndex
from rbft.video.pixels import Fit, resize
from rbft.video.probe import VideoInfo, starts_as_mp4_or_matroska

CODECS = frozenset(("h264", "hevc", "mpeg4", "vp8", "vp9"))

_BATCH_BYTES = 256 << 20
"""decord returns frames at their stored size: 128 of 1080p would be 800 MB at once."""

_TIME_TOLERANCE_S = 2e-3
"""decord keeps times in float32."""


def refuse_unsafe(path: str | Path, info: VideoInfo) -> None:
    """Raise `VideoFormatError` if decord must not see this file, whoever asks for it."""
    if info.codec not in CODECS or not starts_as_mp4_or_matroska(path):
        raise VideoFormatError(f"{path}: decord is not given {info.codec} in {info.container}; set video.backend to auto or pyav")
    if info.is_mirrored:
        raise VideoFormatError(f"{path}: is stored mirrored, which decord does not undo; set video.backend to auto or pyav")


def read_frames(path: str | Path, index: FrameIndex, frames: np.ndarray, fit: Fit) -> Iterator[tuple[int, float, np.ndarray]]:
    """As `rbft.video.frames_pyav.read_frames`, but a frame that does not decode is a `VideoDecodeError`, and so is a file that decord sees
    other frames in than the index has, or would take the wrong ones from."""
    import decord

    if index.has_open_groups:  # x265's default; decord's seek gives the frames after an open group's key packet from wrong references
        raise VideoDecodeError(f"{path}: has open groups of pictures, which decord gets wrong; set video.backend to auto or pyav")

    decord.logging.set_level(decord.logging.QUIET)
    try:
        # Any frame decord could not decode counts as over this tolerance (0 would turn the check off).
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1, fault_tol=1e-9)
        _check_same_frames(path, reader, index)
        batch, done = 1, 0
        while done < len(frames):
            part = frames[done : done + batch]
            pixels_THWC = reader.get_batch(part).asnumpy()
            for place, (time_s, frame_HWC) in enumerate(zip(index.times_s[part], pixels_THWC, strict=True), start=done):
                yield place, float(time_s), resize(frame_HWC, *fit(*frame_HWC.shape[:2]))
            done += len(part)
            batch = max(1, _BATCH_BYTES // pixels_THWC[0].nbytes)
    except (decord.DECORDError, RuntimeError, AssertionError, IndexError) as error:
        raise VideoDecodeError(f"{path}: decord cannot read it ({_reason(error)}); set video.backend to auto") from None


def _check_same_frames(path: str | Path, reader: Any, index: FrameIndex) -> None:
    times_s = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    if len(times_s) != index.num_frames or np.abs(times_s - times_s[0] - index.times_s).max() > _TIME_TOLERANCE_S:
        raise VideoDecodeError(f"{path}: decord sees other frames than the file has; set video.backend to auto or pyav")


def _reason(error: Exception) -> str:
    """The first line of what decord said; the others are a C++ trace."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
