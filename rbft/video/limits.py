"""What a video file may be before anyone spends time on it. Jobs on one's own videos set none; a service that takes anybody's does."""

from __future__ import annotations

from dataclasses import dataclass

from rbft.errors import VideoTooLargeError


@dataclass(frozen=True)
class SourceLimits:
    """Each is checked on what the header says, and again on what is really there; None is no limit."""

    max_duration_s: float | None = None
    max_frames: int | None = None
    """Of the video stream, as stored."""
    max_pixels: int | None = None
    """Of one frame, as stored: height x width."""

    def check_duration(self, duration_s: float) -> None:
        """Raise `VideoTooLargeError` if a video may not be so long."""
        if self.max_duration_s is not None and duration_s > self.max_duration_s:
            raise VideoTooLargeError(f"lasts {duration_s:.1f} s and may last {self.max_duration_s:g} s; send the part that matters")

    def check_frames(self, num_frames: int) -> None:
        """Raise `VideoTooLargeError` if a video may not have so many frames."""
        if self.max_frames is not None and num_frames > self.max_frames:
            raise VideoTooLargeError(f"has more than the {self.max_frames} frames that it may have; send a part of it, or fewer a second")

    def check_size(self, height: int, width: int) -> None:
        """Raise `VideoTooLargeError` if frames may not be so large."""
        if self.max_pixels is not None and height * width > self.max_pixels:
            raise VideoTooLargeError(f"has frames of {width} x {height}, and {self.max_pixels} pixels are the most; scale it down")


NO_LIMITS = SourceLimits()
