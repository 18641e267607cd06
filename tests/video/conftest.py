"""Small videos, made when first asked for. Frame i of every clip has brightness `brightness(i)`, and its top left quarter is red."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.clips import same_scheduling

WriteVideo = Callable[..., Path]


def brightness(frame: int) -> int:
    return 40 + 5 * (frame % 40)


def picture(frame: int, height: int, width: int) -> np.ndarray:
    rgb = np.full((height, width, 3), brightness(frame), dtype=np.uint8)
    rgb[: height // 2, : width // 2] = (200, 0, 0)
    return rgb


@pytest.fixture(scope="session")
def write_video(tmp_path_factory: pytest.TempPathFactory) -> WriteVideo:
    """Writes a video of `num_frames` frames at `fps`, and gives its path."""

    def write(
        name: str = "plain.mp4",
        codec: str = "libx264",
        num_frames: int = 80,
        fps: int = 10,
        size: tuple[int, int] = (112, 168),
        pix_fmt: str = "yuv420p",
        times_ms: list[int] | None = None,
        rotate_deg: float | None = None,
        mirror: bool = False,
        container_options: dict[str, str] | None = None,
        **options: str,
    ) -> Path:
        path = tmp_path_factory.mktemp("video") / name
        with same_scheduling(), av.open(str(path), "w", options=container_options or {}) as container:
            stream = container.add_stream(codec, rate=fps, options={key.replace("_", "-"): value for key, value in options.items()})
            stream.height, stream.width = size
            stream.pix_fmt = pix_fmt
            stream.codec_context.thread_count = 1
            if rotate_deg is not None or mirror:
                stream.set_display_rotation(rotate_deg or 0, hflip=mirror)
            if times_ms is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            for i in range(num_frames):
                frame = av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")
                if times_ms is not None:
                    frame.pts, frame.time_base = times_ms[i], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="session")
def plain(write_video: WriteVideo) -> Path:
    """8 s of H.264 at 10 fps, 112 x 168: already of a size the model takes."""
    return write_video()


@pytest.fixture(scope="session")
def audio_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def playlists(write_video: WriteVideo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An HLS playlist and an ffconcat script, each named as a video and naming another, good one."""
    secret = write_video("secret.ts", num_frames=20)
    folder = secret.parent
    hls = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{secret.name}\n#EXT-X-ENDLIST\n"
    (folder / "hls.mp4").write_text(hls)
    (folder / "hls.ts").write_text(hls)
    (folder / "ffconcat.mp4").write_text(f"ffconcat version 1.0\nfile '{secret.name}'\n")
    return {name: folder / name for name in ("hls.mp4", "hls.ts", "ffconcat.mp4")}
