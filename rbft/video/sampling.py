"""Which moments of a clip are looked at, and at what size. Pure arithmetic, no decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rbft.errors import VideoTrimError
from rbft.records import VideoSpec


@dataclass(frozen=True)
class SampleTimes:
    """The moments at which a clip is sampled."""

    times_s: tuple[float, ...]
    """Seconds from the first frame of the video, an even number of them, `1 / fps` apart. The last may lie at or past the end of the
    clip (an odd number was made even): the clip's last frame is meant, as Qwen's video processor repeats it."""
    fps: float
    """The true sampling rate: `spec.fps`, except for a clip too short for `min_frames` (higher) or too long for `max_frames` (lower)."""
    num_wanted: int
    """How many frames `spec.fps` asked for before `max_frames`."""

    @property
    def is_capped(self) -> bool:
        return self.num_wanted > len(self.times_s)


def trim(duration_s: float, start_s: float | None, end_s: float | None) -> tuple[float, float]:
    """Start and end of the clip in seconds, inside a video of `duration_s` seconds.

    An end past the video's end is the video's end; a negative one counts from there, as in "drop the last 20 seconds".
    Raises `VideoTrimError` if nothing is left.
    """
    start = 0.0 if start_s is None else start_s
    end = duration_s if end_s is None else min(end_s, duration_s) if end_s >= 0 else duration_s + end_s
    if not 0 <= start < end:
        raise VideoTrimError(f"the trim from {start_s} s to {end_s} s leaves nothing of a video of {duration_s:.3f} s; correct the trim")
    return start, end


def sample_times(duration_s: float, start_s: float | None, end_s: float | None, spec: VideoSpec) -> SampleTimes:
    """Uniform sample times at `spec.fps` over the (trimmed) clip: 8 s at 1 FPS are 0, 1, ..., 7 (readings, 2).

    The count is even, because the backbones merge frames in pairs; an odd count is rounded up, so that no end of a clip goes unseen. A clip
    too short for `min_frames` is sampled more densely, one too long for `max_frames` more thinly, each over its whole length.
    Raises `VideoTrimError` if the trim leaves nothing.
    """
    start, end = trim(duration_s, start_s, end_s)
    length_s = end - start
    # A frame stands for the time up to the next one, so a clip holds as many as fit, to the nearest: 8.02 s (a last audio packet) are 8.
    num_wanted = _even(math.floor(length_s * spec.fps + 0.5))
    num_frames = min(max(num_wanted, _even(spec.min_frames)), max(2, spec.max_frames // 2 * 2))
    fps = spec.fps if num_frames == num_wanted else num_frames / length_s
    return SampleTimes(times_s=tuple(start + i / fps for i in range(num_frames)), fps=fps, num_wanted=num_wanted)


def fit_size(height: int, width: int, spec: VideoSpec) -> tuple[int, int]:
    """Height and width of a frame as the model sees it: at most `spec.max_pixels` in *area*, the aspect kept as far as may be.

    Both are multiples of `spec.patch_multiple`, the area is at least `spec.min_pixels`. This is the arithmetic of qwen-vl-utils' and
    transformers' `smart_resize`, which leave a size that comes from here as it is. Unlike theirs it never passes `max_pixels` and takes
    any aspect: a strip too thin for both is shortened.
    """
    factor = spec.patch_multiple
    fit_height, fit_width = round(height / factor) * factor, round(width / factor) * factor
    if fit_height * fit_width > spec.max_pixels:
        shrink = math.sqrt(height * width / spec.max_pixels)
        fit_height = max(factor, math.floor(height / shrink / factor) * factor)
        fit_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif fit_height * fit_width < max(spec.min_pixels, 1):
        grow = math.sqrt(max(spec.min_pixels, 1) / (height * width))
        fit_height = math.ceil(height * grow / factor) * factor
        fit_width = math.ceil(width * grow / factor) * factor
    longest = max(factor, spec.max_pixels // min(fit_height, fit_width) // factor * factor)
    return min(fit_height, longest), min(fit_width, longest)


def video_tokens(num_frames: int, height: int, width: int, side: int, temporal_patch_size: int) -> int:
    """T/2 x H/28 x W/28 for Qwen2-VL and Qwen2.5-VL: one token a `side` x `side` square of `temporal_patch_size` frames."""
    return num_frames // temporal_patch_size * (height // side) * (width // side)


def _even(count: int) -> int:
    return count + count % 2
