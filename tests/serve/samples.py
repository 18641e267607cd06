"""A task, video settings and a clip for tests of the service."""

from pathlib import Path

import av
import numpy as np

from rbft.records import VideoSpec
from rbft.task import Dimension, Task

TASK = Task(
    name="homes",
    labels=("normal", "abnormal"),
    persona="security expert",
    dimensions=(Dimension(heading="Scene", describe="where it is"),),
    question="Is this video normal or abnormal?",
)
SPEC = VideoSpec(max_pixels=12_544)


def write_clip(path: Path, seconds: int = 4) -> Path:
    """A moving square, H.264 in MP4, in the file `path`; returns `path`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height = stream.width = 112
        stream.pix_fmt = "yuv420p"
        for step in range(8 * seconds):
            frame_HWC = np.full((112, 112, 3), 40, np.uint8)
            frame_HWC[30:60, 2 * step % 82 : 2 * step % 82 + 30] = (200, 30, 90)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())
    return path


_CODECS = {".webm": "libvpx", ".mpg": "mpeg1video", ".avi": "mpeg4"}


def write_other(path: Path) -> Path:
    """Two seconds of noise that gets lighter, in the container that the suffix of `path` says; returns `path`."""
    noise_HWC = np.random.default_rng(0).integers(0, 90, (64, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(_CODECS.get(path.suffix, "libx264"), rate=25)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        for step in range(50):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise_HWC + np.uint8(3 * step), format="rgb24")))
        container.mux(stream.encode())
    return path
