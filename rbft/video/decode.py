"""One video to one clip, in this process: probe, index, sample, take the frames, bring them to size.

Call it through `rbft.video.pool.DecodePool`: a decoder may hang for ever or end its process. Pixels are as stored, one stored pixel being
one pixel: a sample aspect ratio is not applied (nor does Qwen's own pipeline), the display matrix (rotation) is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from rbft.errors import VideoDecodeError, VideoMemoryError, VideoTooLargeError
from rbft.records import Clip, VideoSpec
from rbft.video import frames_decord, frames_pyav
from rbft.video.index import open_index
from rbft.video.limits import NO_LIMITS, SourceLimits
from rbft.video.pixels import Fit
from rbft.video.probe import probe
from rbft.video.sampling import fit_size, sample_times, trim

logger = logging.getLogger(__name__)

_MAX_SHARE_LOST = 0.25
"""A clip with more of its sampled frames undecodable is no longer the video."""


def decode(
    path: str | Path,
    spec: VideoSpec,
    start_s: float | None = None,
    end_s: float | None = None,
    announce: Callable[[str], None] = lambda backend: None,
    num_threads: int = 1,
    limits: SourceLimits = NO_LIMITS,
) -> Clip:
    """The clip from `start_s` to `end_s` of the local file `path`, sampled by `spec`: for each sample time, the frame on the screen then
    (the last at or before it).

    Times count from the first frame of the video. `announce` is told the decoder's name before it starts, so that a watcher knows whom a
    hang belongs to. `spec.backend` "auto" is PyAV: `benchmarks/results/decode.md` has no case in which decord is quicker, and it reads what
    decord cannot. The clip of a sound video does not depend on `num_threads`, which decord ignores. Raises a `VideoError`, the
    most specific one: `VideoTooLargeError` as soon as the video is seen to pass `limits`.
    """
    backend = "pyav" if spec.backend == "auto" else spec.backend
    try:
        if backend == "decord":
            frames_decord.refuse_unsafe(path, probe(path))
        with open_index(path, limits) as (opened, index):
            samples = sample_times(index.duration_s, start_s, end_s, spec)
            if samples.is_capped:
                logger.warning(
                    "frames capped video=%s wanted=%d taken=%d fps=%.4g", path, samples.num_wanted, len(samples.times_s), samples.fps
                )
            distinct, place = np.unique(index.at(samples.times_s, trim(index.duration_s, start_s, end_s)[1]), return_inverse=True)
            fit = _same_size(spec, limits)
            announce(backend)
            if backend == "decord":
                frames = frames_decord.read_frames(path, index, distinct, fit)
            else:
                frames = frames_pyav.read_frames(path, opened, index, distinct, fit, num_threads)
            times_s, frames_THWC = _collect(frames, place)
            lost = np.abs(times_s - index.times_s[distinct]) > 1 / samples.fps
    except VideoTooLargeError as error:
        raise VideoTooLargeError(f"{path}: {error}") from None
    except MemoryError:
        raise VideoMemoryError(f"{path}: decoding needs more memory than the decoder may have; raise video.memory_limit_bytes") from None
    if lost.mean() > _MAX_SHARE_LOST:
        raise VideoDecodeError(f"{path}: {lost.sum()} of {len(lost)} sampled frames do not decode; it is corrupt, get it again")
    return Clip(
        frames_THWC=frames_THWC,
        timestamps_s=tuple(times_s[place].tolist()),
        fps=samples.fps,
        source_duration_s=index.duration_s,
        source_fps=index.fps,
        backend=backend,
    )


def _same_size(spec: VideoSpec, limits: SourceLimits) -> Fit:
    """Fits the first frame by `spec` and makes the others as large: a stream may change its size on the way, and pass `limits` there."""
    fitted: list[tuple[int, int]] = []

    def fit(height: int, width: int) -> tuple[int, int]:
        limits.check_size(height, width)
        if not fitted:
            fitted.append(fit_size(height, width, spec))
        return fitted[0]

    return fit


def _collect(frames: Iterable[tuple[int, float, np.ndarray]], place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 times of the frames, and uint8 [num_samples, H, W, 3] pixels, of which sample i is frame number `place[i]`."""
    times_s, frames_THWC = np.empty(place.max() + 1), None
    for number, time_s, frame_HWC in frames:
        if frames_THWC is None:
            frames_THWC = np.empty((len(place), *frame_HWC.shape), dtype=np.uint8)
        times_s[number], frames_THWC[place == number] = time_s, frame_HWC
    assert frames_THWC is not None  # a clip has at least one frame, and a reader gives it or raises
    return times_s, frames_THWC
