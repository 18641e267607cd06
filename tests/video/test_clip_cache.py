"""The cache gives what decoding gives, bit for bit or not at all; and it keeps to its limit, whoever shares it."""

from __future__ import annotations

import fcntl
import logging
import os
import random
import resource
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbft.errors import VideoMissingError
from rbft.records import Clip, Example, VideoSpec
from rbft.video import clip_cache
from rbft.video.clip_cache import ClipCache, clip_key
from rbft.video.pool import DecodePool
from tests.samples import random_clip

SPEC = VideoSpec()
CLIP_BYTES = 5_000
"""A little more than a clip of `small` takes on disk."""

finite = st.floats(min_value=0, allow_nan=False, allow_infinity=False)


def example(number: int) -> Example:
    return Example(f"v{number}", f"v{number}.mp4", sha256=f"{number:064x}")


def small(number: int) -> Clip:
    return random_clip(num_frames=2, height=28, width=28, seed=number)


def no_decoder() -> Clip:
    raise AssertionError("the clip is in the cache, and was decoded")


def is_cached(cache: ClipCache, number: int) -> bool:
    decoded: list[int] = []

    def decode() -> Clip:
        decoded.append(number)
        return small(number)

    cache.clip(example(number), SPEC, decode)
    return not decoded


def assert_same(one: Clip, other: Clip) -> None:
    assert one.frames_THWC.dtype == other.frames_THWC.dtype == np.uint8
    np.testing.assert_array_equal(one.frames_THWC, other.frames_THWC)
    assert {**vars(one), "frames_THWC": None} == {**vars(other), "frames_THWC": None}


def size_of(folder: Path) -> int:
    """Bytes of clips, also half-written ones, while nobody makes room."""
    with open(folder / "total", "r+b") as total:
        fcntl.flock(total, fcntl.LOCK_EX)
        return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".clip", ".part"))


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**32 - 1),
    times=st.lists(finite, max_size=5),
    fps=finite,
    duration=finite,
    is_view=st.booleans(),
)
def test_a_clip_from_the_cache_is_the_decoded_one_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, ...],
    seed: int,
    times: list[float],
    fps: float,
    duration: float,
    is_view: bool,
) -> None:
    frames = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    clip = Clip(frames[:, ::-1] if is_view else frames, tuple(times), fps, duration, 25.0, "pyav")
    cache = ClipCache(tmp_path_factory.mktemp("clips"), 1 << 20)
    cache.clip(example(1), SPEC, lambda: clip)
    found = cache.clip(example(1), SPEC, no_decoder)
    assert_same(found, clip)
    assert found.frames_THWC.flags.writeable and found.frames_THWC.flags.c_contiguous  # as torch wants it


def test_real_clips_come_back_as_they_were_decoded_and_a_rewritten_video_is_decoded_again(plain: Path, tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    video.write_bytes(plain.read_bytes())
    cache = ClipCache(tmp_path / "clips", 1 << 30)
    with DecodePool(1) as pool:
        decoded = pool.decode(video, SPEC, 1.0, 5.0)
        cut = Example("a", str(video), start_s=1.0, end_s=5.0)
        assert_same(cache.clip(cut, SPEC, lambda: pool.decode(video, SPEC, 1.0, 5.0)), decoded)
        assert_same(cache.clip(cut, SPEC, no_decoder), decoded)
    os.utime(video, ns=(0, 12345))
    with pytest.raises(AssertionError, match="was decoded"):
        cache.clip(cut, SPEC, no_decoder)


def test_the_key_tells_apart_all_that_gives_another_clip_and_nothing_else(plain: Path) -> None:
    unhashed, hashed = Example("a", str(plain)), Example("a", str(plain), sha256="5" * 64)
    others = {
        **{"rate": (unhashed, VideoSpec(fps=2.0)), "size": (unhashed, VideoSpec(max_pixels=50_176))},
        **{"decoder": (unhashed, VideoSpec(backend="decord")), "start": (replace(unhashed, start_s=1.0), SPEC)},
        **{"end": (replace(unhashed, end_s=1.0), SPEC), "video": (hashed, SPEC), "other video": (replace(hashed, sha256="6" * 64), SPEC)},
    }
    keys = [clip_key(unhashed, SPEC), *(clip_key(*other) for other in others.values())]
    assert None not in keys and len(set(keys)) == len(others) + 1
    assert clip_key(replace(hashed, id="b", uri="elsewhere.mp4", label="normal"), VideoSpec(**asdict(SPEC))) == clip_key(hashed, SPEC)
    assert clip_key(Example("gone", "gone.mp4"), SPEC) is None


def test_errors_are_not_kept(tmp_path: Path) -> None:
    cache = ClipCache(tmp_path, 1 << 20)

    def missing() -> Clip:
        raise VideoMissingError("gone")

    for number in (1, 1):
        with pytest.raises(VideoMissingError):
            cache.clip(example(number), SPEC, missing)
    assert not is_cached(cache, 1)
    with pytest.raises(VideoMissingError):
        cache.clip(Example("gone", "gone.mp4"), SPEC, missing)


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 255))
def test_a_file_with_any_byte_changed_or_cut_anywhere_is_a_miss_and_deleted(
    tmp_path_factory: pytest.TempPathFactory, place: float, flip: int
) -> None:
    folder = tmp_path_factory.mktemp("clips")
    cache = ClipCache(folder, 1 << 20)
    cache.clip(example(1), SPEC, lambda: small(1))
    (path,) = folder.glob("*.clip")
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    if flip:
        content[at] ^= flip
    path.write_bytes(content if flip else content[:at])
    with pytest.raises(AssertionError, match="was decoded"):
        cache.clip(example(1), SPEC, no_decoder)
    assert not path.exists()
    assert_same(cache.clip(example(1), SPEC, lambda: small(1)), small(1))
    assert is_cached(cache, 1)


def test_those_longest_unused_go_first_and_the_limit_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_cache, "_SHARE_TAKEN_WHEN_FULL", 1.0)
    cache = ClipCache(tmp_path, 16 * CLIP_BYTES)
    for number in range(16):
        assert not is_cached(cache, number)
        (path,) = tmp_path.glob(f"{clip_key(example(number), SPEC)}.clip")
        os.utime(path, ns=(number, number))  # times of a clock that has stood between two of them
    assert is_cached(cache, 0) and is_cached(cache, 1)
    for number in range(16, 22):
        assert not is_cached(cache, number)
        assert size_of(tmp_path) <= 16 * CLIP_BYTES
    assert is_cached(cache, 0) and is_cached(cache, 1) and all(is_cached(cache, number) for number in range(16, 22))
    assert not list(tmp_path.glob(f"{clip_key(example(2), SPEC)}.clip"))


def test_a_set_twice_as_large_as_the_cache_is_found_more_often_than_by_letting_all_of_it_in(tmp_path: Path) -> None:
    cache, order = ClipCache(tmp_path, 60 * CLIP_BYTES), random.Random(0)
    cache._random = random.Random(0)
    share_found = 0.0
    for epoch in range(5):
        found = [is_cached(cache, number) for number in order.sample(range(120), 120)]
        share_found = sum(found) / len(found) if epoch else 0.0
    assert 0.25 < share_found <= 0.5  # 0.15 with all of them taken
    assert size_of(tmp_path) <= 60 * CLIP_BYTES


def test_a_clip_larger_than_the_limit_is_not_kept_and_nothing_makes_room_for_it(tmp_path: Path) -> None:
    cache = ClipCache(tmp_path, 3 * CLIP_BYTES)
    assert not is_cached(cache, 1)
    large = random_clip(num_frames=8, height=56, width=56)
    for _ in range(2):
        assert_same(cache.clip(example(2), SPEC, lambda: large), large)
    assert is_cached(cache, 1) and len(list(tmp_path.glob("*.clip"))) == 1


def test_no_more_than_half_of_what_is_free_on_the_disk_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 8 * CLIP_BYTES
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=free - size_of(tmp_path), f_frsize=1))
    monkeypatch.setattr(clip_cache, "_SHARE_TAKEN_WHEN_FULL", 1.0)
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)  # `size_of` above runs while the lock is held
    cache = ClipCache(tmp_path, 1 << 40)
    for number in range(12):
        is_cached(cache, number)
    assert 2 * CLIP_BYTES < size_of(tmp_path) <= free / 2


def test_a_full_disk_stops_it_with_one_warning_and_what_is_there_is_still_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = ClipCache(tmp_path, 1 << 30)
    assert not is_cached(cache, 1)
    large = random_clip(num_frames=8, height=280, width=280)  # 1.9 MB
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))  # to a writer the same as no room: an OSError
    try:
        with caplog.at_level(logging.WARNING):
            for number in (2, 3, 4):
                assert_same(cache.clip(example(number), SPEC, lambda: large), large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [record.message.partition(" folder=")[0] for record in caplog.records] == ["no more clips are cached"]
    assert is_cached(cache, 1) and not is_cached(cache, 5) and not is_cached(cache, 5)
    assert not list(tmp_path.glob("*.part"))


def test_a_folder_that_cannot_be_made_and_a_limit_of_nothing_are_no_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        cache = ClipCache(tmp_path / "file", 1 << 20)
    assert len(caplog.records) == 1
    off = ClipCache(tmp_path / "off", 0)
    assert not any(is_cached(each, 1) for each in (cache, cache, off, off))
    assert not (tmp_path / "off").exists()


def test_what_dead_processes_left_is_counted_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_cache, "_SHARE_TAKEN_WHEN_FULL", 1.0)
    left = tmp_path / f"{'0' * 64}.left.part"
    left.write_bytes(bytes(4 * CLIP_BYTES))
    os.utime(left, ns=(0, 0))
    (tmp_path / "total").write_bytes(b"")  # cut short, too
    cache = ClipCache(tmp_path, 6 * CLIP_BYTES)
    for number in range(4):
        assert not is_cached(cache, number)
    assert not left.exists() and size_of(tmp_path) <= 6 * CLIP_BYTES
    assert is_cached(cache, 3)


_OTHER_PROCESS = """
import random, sys
from tests.video.test_clip_cache import *
folder, limit, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
clip_cache._SHARE_TAKEN_WHEN_FULL = 1.0
cache, order, hits = ClipCache(folder, limit), random.Random(seed), 0
for number in order.choices(range(30), k=1500):
    decoded = []
    assert_same(cache.clip(example(number), SPEC, lambda: decoded.append(1) or small(number)), small(number))
    hits += not decoded
assert cache._takes_clips
print(hits)
"""


def test_processes_that_share_a_folder_get_the_right_clips_and_keep_to_the_limit_together(tmp_path: Path) -> None:
    limit = 16 * CLIP_BYTES
    command = [sys.executable, "-c", _OTHER_PROCESS, str(tmp_path), str(limit)]
    others = [subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, text=True) for seed in range(2)]
    sizes = []
    while any(other.poll() is None for other in others):
        if (tmp_path / "total").exists():
            sizes.append(size_of(tmp_path))
        time.sleep(0.002)
    hits = [int(other.communicate()[0]) for other in others]
    assert [other.returncode for other in others] == [0, 0]
    assert max(sizes) <= limit and len(sizes) > 5
    assert min(hits) > 500  # half of the set fits
    assert not list(tmp_path.glob("*.part"))
