"""A task, clips and video files for tests in which only their shape matters."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from rbft.records import Clip, VideoSpec
from rbft.task import Dimension, Task

TASK = Task(
    name="homes",
    labels=("normal", "abnormal"),
    persona="security expert",
    dimensions=(Dimension(heading="Scene", describe="where it is"), Dimension(heading="Motion", describe="what moves")),
    question="Is this video normal or abnormal?",
)
SPEC = VideoSpec(max_pixels=12_544)


def random_clip(num_frames: int = 4, height: int = 56, width: int = 84, fps: float = 1.0, seed: int = 0) -> Clip:
    """A clip of noise."""
    frames_THWC = np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    return Clip(frames_THWC, tuple(i / fps for i in range(num_frames)), fps, num_frames / fps, 10.0, "pyav")


def write_video(path: Path, seconds: int = 4, seed: int = 0) -> Path:
    """A small H.264 video of coloured noise in the file `path`; returns `path`."""
    blocks_THWC = np.random.default_rng(seed).integers(0, 256, (2 * seconds, 7, 7, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.height = stream.width = 56
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for blocks_HWC in blocks_THWC:
            frame_HWC = blocks_HWC.repeat(8, axis=0).repeat(8, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_jpeg_video(path: Path, sizes: Sequence[tuple[int, int]], gap_ms: int) -> Path:
    """A video of grey JPEG frames of `sizes` (height, width), `gap_ms` apart, in the file `path`; returns `path`.

    A frame of a size is encoded once, so that thousands of them cost nothing.
    """
    jpegs = {size: _jpeg(*size) for size in set(sizes)}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width = sizes[0]
        stream.pix_fmt = "yuvj420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, size in enumerate(sizes):
            packet = av.Packet(jpegs[size])
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = number * gap_ms
            packet.is_keyframe = True
            container.mux(packet)
    return path


def _jpeg(height: int, width: int) -> bytes:
    codec = av.CodecContext.create("mjpeg", "w")
    codec.height, codec.width, codec.pix_fmt, codec.time_base = height, width, "yuvj420p", Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 90, np.uint8), format="rgb24").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])
