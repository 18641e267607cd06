"""The clips of `benchmarks/decode.py`: drawn, moving, a little noisy, so that the bitstreams are like those of cameras."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np


@dataclass(frozen=True)
class Case:
    """One clip to be decoded."""

    name: str
    codec: str
    """FFmpeg's name of the encoder."""
    height: int
    width: int
    duration_s: int
    options: dict[str, str] = field(default_factory=dict)
    """Of the encoder."""
    fps: int = 30
    suffix: str = ".mp4"
    speed: float = 1.0
    """Of the motion: 0 is a scene that stands still but for noise."""

    @property
    def num_frames(self) -> int:
        return self.fps * self.duration_s


_X264 = {"preset": "veryfast", "crf": "24"}
_X265 = {"preset": "ultrafast", "bframes": "4", "crf": "27"}
_VP9 = {"deadline": "realtime", "cpu-used": "8", "row-mt": "1", "tile-columns": "1", "crf": "36", "b": "0"}
_AV1 = {"preset": "12", "crf": "40"}

CASES = (
    Case("h264-360p-8s-long-gop", "libx264", 360, 640, 8, _X264 | {"g": "250"}),
    Case("h264-720p-30s-long-gop", "libx264", 720, 1280, 30, _X264 | {"g": "250"}),
    # What phones write: a key frame a second, no B-frames.
    Case("h264-720p-60s-short-gop", "libx264", 720, 1280, 60, _X264 | {"g": "30", "bf": "0"}),
    Case("h264-1080p-10s-short-gop", "libx264", 1080, 1920, 10, _X264 | {"g": "48"}),
    Case("h264-1080p-30s-long-gop", "libx264", 1080, 1920, 30, _X264 | {"g": "250"}),
    Case("h264-360p-600s-long-gop", "libx264", 360, 640, 600, _X264 | {"g": "250"}, fps=25),
    Case("h264-480p-60s-still", "libx264", 480, 854, 60, _X264 | {"g": "250"}, fps=25, speed=0.0),
    Case("hevc-360p-10s", "libx265", 360, 640, 10, _X265),
    Case("hevc-720p-30s", "libx265", 720, 1280, 30, _X265),
    Case("vp9-360p-60s", "libvpx-vp9", 360, 640, 60, _VP9 | {"g": "128"}, suffix=".webm"),
    Case("vp9-720p-30s", "libvpx-vp9", 720, 1280, 30, _VP9 | {"g": "128"}, suffix=".webm"),
    Case("av1-360p-60s", "libsvtav1", 360, 640, 60, _AV1),
    Case("av1-1080p-10s", "libsvtav1", 1080, 1920, 10, _AV1),
)
"""GOP lengths are those that encoders write when not told otherwise (250 x264 and x265, 128 YouTube's VP9, about five seconds SVT-AV1)."""


def make_clip(case: Case, folder: Path) -> Path:
    """The file of `case` in `folder`, encoded if it is not there yet."""
    path = folder / f"{case.name}{case.suffix}"
    if path.exists():
        return path
    unfinished = path.with_name(f"unfinished-{path.name}")
    with same_scheduling(), av.open(str(unfinished), "w") as container:
        stream = container.add_stream(case.codec, rate=case.fps, options=_quiet(case))
        stream.height, stream.width, stream.pix_fmt = case.height, case.width, "yuv420p"
        for frame in _frames(case):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    os.replace(unfinished, path)
    return path


@contextlib.contextmanager
def same_scheduling() -> Iterator[None]:
    """The thread is scheduled after the block as before: SVT-AV1 makes who encodes with it, if that is root, and so all child processes it
    has from then on, go before everything else on the machine (SCHED_FIFO, 99)."""
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def _quiet(case: Case) -> dict[str, str]:
    return case.options | ({"x265-params": "log-level=none"} if case.codec == "libx265" else {})


def _frames(case: Case) -> Iterator[av.VideoFrame]:
    """A camera pans over a textured wall in front of which discs move; each picture has its own grain."""
    generator = np.random.default_rng(0)
    height, width = case.height, case.width
    wall = _texture(generator, height * 2, width * 2)
    chroma = np.stack([_texture(generator, height, width) // 2 + 64 for _ in range(2)]).astype(np.uint8)
    grain = generator.normal(0, 2.0, (8, height, width)).round().astype(np.int16)
    rows, columns = np.ogrid[:height, :width]
    radius = height // 9
    for i in range(case.num_frames):
        phase = case.speed * i / case.fps
        y = int(height / 2 * (1 + np.sin(phase * 0.31))) // 2 * 2
        x = int(width / 2 * (1 + np.sin(phase * 0.23 + 1))) // 2 * 2
        luma = wall[y : y + height, x : x + width] + grain[i % 8]
        for disc in range(3):
            row = int(height / 2 * (1 + 0.8 * np.sin(phase * (1.1 + disc) + disc)))
            column = int(width / 2 * (1 + 0.8 * np.cos(phase * (0.9 + 0.7 * disc) + 2 * disc)))
            top, left = max(0, row - radius), max(0, column - radius)
            box = (slice(top, row + radius), slice(left, column + radius))
            inside = (rows[box[0]] - row) ** 2 + (columns[:, box[1]] - column) ** 2 < radius**2
            luma[box][inside] = 60 + 60 * disc + grain[(i + 1) % 8][box][inside]
        planes = [luma.clip(16, 235).astype(np.uint8), *chroma[:, y // 2 : y // 2 + height // 2, x // 2 : x // 2 + width // 2]]
        stacked = np.concatenate([plane.ravel() for plane in planes]).reshape(-1, width)
        yield av.VideoFrame.from_ndarray(stacked, format="yuv420p")


def _texture(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """int16 [height, width], 16 to 235: noise at four scales, the coarse ones stronger."""
    total = np.zeros((height, width), dtype=np.float32)
    for scale, weight in ((64, 4.0), (16, 2.0), (4, 1.0), (1, 0.25)):
        coarse = generator.normal(size=(height // scale + 2, width // scale + 2)).astype(np.float32)
        total += weight * np.kron(coarse, np.ones((scale, scale), dtype=np.float32))[:height, :width]
    return ((total - total.min()) / np.ptp(total) * 219 + 16).astype(np.int16)
