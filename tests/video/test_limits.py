"""What a video may be at most, held against its header and against what is really there."""

from pathlib import Path

import av
import pytest

from rbft.errors import VideoTooLargeError
from rbft.records import VideoSpec
from rbft.video.decode import decode
from rbft.video.limits import SourceLimits
from rbft.video.pool import DecodePool
from tests.samples import write_jpeg_video

SPEC = VideoSpec()


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (SourceLimits(max_duration_s=7.9), "lasts 8.0 s"),
        (SourceLimits(max_frames=79), "79 frames"),
        (SourceLimits(max_pixels=112 * 168 - 1), "168 x 112"),
    ],
)
def test_a_video_that_passes_a_limit_is_refused_and_one_at_it_is_not(plain: Path, limits: SourceLimits, reason: str) -> None:
    with pytest.raises(VideoTooLargeError, match=reason) as raised:
        decode(plain, SPEC, limits=limits)
    assert str(raised.value).startswith(f"{plain}: ")
    assert decode(plain, SPEC, limits=SourceLimits(8.0, 80, 112 * 168)).num_frames == 8


def test_the_pool_holds_its_videos_to_its_limits(plain: Path) -> None:
    with DecodePool(1, limits=SourceLimits(max_frames=10)) as pool, pytest.raises(VideoTooLargeError, match="10 frames"):
        pool.decode(plain, SPEC)


def test_frames_are_counted_and_not_believed(tmp_path: Path) -> None:
    """Matroska's header has no count."""
    path = write_jpeg_video(tmp_path / "many.mkv", [(64, 64)] * 200, gap_ms=10)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    with pytest.raises(VideoTooLargeError, match="199 frames"):
        decode(path, SPEC, limits=SourceLimits(max_frames=199))
    decode(path, SPEC, limits=SourceLimits(max_frames=200))


def test_a_length_between_frames_counts_too(tmp_path: Path) -> None:
    path = write_jpeg_video(tmp_path / "long.mkv", [(64, 64)] * 4, gap_ms=3_600_000)
    with pytest.raises(VideoTooLargeError, match="may last 600 s"):
        decode(path, SPEC, limits=SourceLimits(max_duration_s=600))


def test_frames_that_grow_on_the_way_are_refused(tmp_path: Path) -> None:
    path = write_jpeg_video(tmp_path / "grows.mkv", [(64, 64)] * 4 + [(512, 512)] * 4, gap_ms=1000)
    with pytest.raises(VideoTooLargeError, match="512 x 512"):
        decode(path, SPEC, limits=SourceLimits(max_pixels=256 * 256))
    assert decode(path, SPEC).num_frames == 8
