"""The quick way to decode gives what the careful one gives, pixel for pixel, with any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rbft.errors import VideoError
from rbft.records import VideoSpec
from rbft.video import frames_pyav
from rbft.video.decode import decode
from rbft.video.index import open_index
from rbft.video.spare import spare_test

SPEC = VideoSpec()
X265 = "keyint=30:bframes=4:log-level=none:pools=none"

CODECS = [
    # name, codec, options, whether some packets are spare
    ("a.mp4", "libx264", {"bf": "3", "g": "250"}, True),
    ("a.mkv", "libx264", {"bf": "3", "g": "17"}, True),
    ("a.mp4", "libx264", {"bf": "0", "g": "17"}, False),
    ("a.ts", "libx264", {"bf": "3"}, False),
    ("interlaced.mp4", "libx264", {"bf": "3", "x264_params": "tff=1"}, False),
    ("a.mp4", "libx265", {"x265_params": X265 + ":open-gop=0"}, True),
    ("a.mp4", "libx265", {"x265_params": X265 + ":open-gop=1"}, True),
    ("layers.mp4", "libx265", {"x265_params": X265 + ":temporal-layers=2"}, False),
    ("a.webm", "libvpx-vp9", {"deadline": "realtime", "cpu_used": "8"}, False),
    ("a.mp4", "libsvtav1", {"preset": "12", "svtav1_params": "lp=1"}, True),
    ("a.mkv", "libsvtav1", {"preset": "12", "svtav1_params": "lp=1:pred-struct=1"}, True),
]


def num_spare(path: Any) -> int:
    with open_index(path) as (opened, _):
        assert opened.packets is not None
        return sum(map(spare_test(opened.stream, opened.packets), opened.packets))


def decode_with_care(path: Any, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    def give_up(*arguments: Any) -> Iterator[Any]:
        raise frames_pyav._TroubleError("not wanted")

    with monkeypatch.context() as patch:
        patch.setattr(frames_pyav, "_quick", give_up)
        return decode(path, SPEC).frames_THWC


@pytest.mark.parametrize(("name", "codec", "options", "has_spare"), CODECS)
def test_frames_are_those_of_a_whole_decode(write_video, monkeypatch, name, codec, options, has_spare):
    path = write_video(name, codec=codec, num_frames=75, fps=10, size=(240, 320), **options)
    assert (num_spare(path) > 0) == has_spare
    expected = decode_with_care(path, monkeypatch)
    for num_threads in (1, 3):
        np.testing.assert_array_equal(decode(path, SPEC, num_threads=num_threads).frames_THWC, expected)


@pytest.mark.parametrize(
    ("name", "codec", "options"), [("a.mp4", "libx264", {"bf": "3", "crf": "5"}), ("a.mkv", "libx264", {"bf": "0", "crf": "5"})]
)
def test_a_damaged_video_gives_the_same_with_any_number_of_threads(write_video, tmp_path, monkeypatch, name, codec, options):
    whole = write_video(name, codec=codec, num_frames=75, fps=10, size=(240, 320), **options).read_bytes()
    path, num_careful = tmp_path / name, 0
    real_careful = frames_pyav._careful

    def count(*arguments: Any) -> Iterator[Any]:
        nonlocal num_careful
        num_careful += 1
        return real_careful(*arguments)

    def outcome(num_threads: int) -> Any:
        try:
            return decode(path, SPEC, num_threads=num_threads).frames_THWC.tobytes()
        except VideoError as error:
            return error.code

    monkeypatch.setattr(frames_pyav, "_careful", count)
    for seed in range(6):
        generator = np.random.default_rng(seed)
        damaged = bytearray(whole)
        start = int(generator.integers(len(whole) // 4, len(whole) * 3 // 4))
        damaged[start : start + 30] = generator.bytes(30)
        path.write_bytes(damaged)
        assert outcome(1) == outcome(3)
    assert num_careful > 0


def test_packets_that_are_not_kept_are_read_again(write_video, monkeypatch):
    path = write_video(bf="3")
    expected = decode(path, SPEC)
    monkeypatch.setattr("rbft.video.index._MAX_KEPT_BYTES", 1000)
    np.testing.assert_array_equal(decode(path, SPEC).frames_THWC, expected.frames_THWC)
