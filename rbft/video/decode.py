"""One video to one clip, in this process: probe, index, sample, take the frames, bring them to size.

Call it through `rbft.video.pool.DecodePool`: a decoder may hang for ever or end its process. Pixels are as stored, one stored pixel being
one pixel: a sample aspect ratio is not applied (nor does Qwen's own pipeline), the display matrix (rotation) is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rbft.errors import VideoDecodeError, VideoMemoryError
from rbft.records import Clip, VideoSpec
from rbft.video import frames_decord, frames_pyav
from rbft.video.index import FrameIndex, read_index
from rbft.video.pixels import resize
from rbft.video.probe import VideoInfo, probe
from rbft.video.sampling import SampleTimes, fit_size, sample_times, trim

logger = logging.getLogger(__name__)

_READERS = {"decord": frames_decord.read_frames, "pyav": frames_pyav.read_frames}

_MAX_SHARE_LOST = 0.25
"""A clip with more of its sampled frames undecodable is no longer the video."""


def decode(
    path: str | Path,
    spec: VideoSpec,
    start_s: float | None = None,
    end_s: float | None = None,
    announce: Callable[[str], None] = lambda backend: None,
) -> Clip:
    """The clip from `start_s` to `end_s` of the local file `path`, sampled by `spec`: for each sample time, the frame on the screen then
    (the last at or before it).

    Times count from the first frame of the video. `announce` is told each decoder's name before it starts, so that a watcher knows whom a
    hang belongs to. `spec.backend` "auto" takes decord where the probe says that it suits and goes to PyAV for whatever decord cannot read.
    Raises a `VideoError`, the most specific one.
    """
    try:
        info = probe(path)
        index = read_index(path)
        samples = sample_times(index.duration_s, start_s, end_s, spec)
        if samples.is_capped:
            logger.warning(
                "frames capped video=%s wanted=%d taken=%d fps=%.4g", path, samples.num_wanted, len(samples.times_s), samples.fps
            )
        frames = index.at(samples.times_s, trim(index.duration_s, start_s, end_s)[1])
        for backend in (tried := _backends(path, info, index, spec)):
            announce(backend)
            try:
                return _take(path, spec, index, samples, frames, backend)
            except Exception as error:  # whatever it was that decord could not do, PyAV may
                if backend == tried[-1]:
                    raise
                logger.info("%s failed, trying the next video=%s error=%s", backend, path, error)
    except MemoryError:
        raise VideoMemoryError(f"{path}: decoding needs more memory than the decoder may have; raise video.memory_limit_bytes") from None
    raise AssertionError("unreachable: the last backend returns or raises")


def _backends(path: str | Path, info: VideoInfo, index: FrameIndex, spec: VideoSpec) -> tuple[str, ...]:
    if spec.backend == "auto":
        return ("decord", "pyav") if frames_decord.suits(path, info, index) else ("pyav",)
    if spec.backend == "decord":
        frames_decord.refuse_unsafe(path, info)
    return (spec.backend,)


def _take(path: str | Path, spec: VideoSpec, index: FrameIndex, samples: SampleTimes, frames: np.ndarray, backend: str) -> Clip:
    distinct, place = np.unique(frames, return_inverse=True)
    pixels: list[np.ndarray] = []
    times_s: list[float] = []
    for time_s, frame_HWC in _READERS[backend](path, index, distinct):
        # All as large as the first: a stream may change its size on the way.
        height, width = pixels[0].shape[:2] if pixels else fit_size(frame_HWC.shape[0], frame_HWC.shape[1], spec)
        pixels.append(resize(frame_HWC, height, width))
        times_s.append(time_s)
    lost = np.abs(np.asarray(times_s) - index.times_s[distinct]) > 1 / samples.fps
    if lost.mean() > _MAX_SHARE_LOST:
        raise VideoDecodeError(f"{path}: {lost.sum()} of {len(lost)} sampled frames do not decode; it is corrupt, get it again")
    return Clip(
        frames_THWC=np.stack([pixels[i] for i in place]),
        timestamps_s=tuple(times_s[i] for i in place),
        fps=samples.fps,
        source_duration_s=index.duration_s,
        source_fps=index.fps,
        backend=backend,
    )
