"""The pool: whatever a file does to its decoder, the caller gets a clip or one error, and the next video is decoded."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from rbft.errors import (
    DecoderCrashError,
    DecoderStartError,
    VideoError,
    VideoFormatError,
    VideoMemoryError,
    VideoMissingError,
    VideoTimeoutError,
    VideoTrimError,
)
from rbft.records import VideoSpec
from rbft.video.decode import decode
from rbft.video.pool import DecodePool

SPEC = VideoSpec()


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(num_workers=1, timeout_s=60) as pool:
        yield pool


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """A FIFO that nobody writes to: opening it never returns."""
    os.mkfifo(tmp_path / "hanging.mp4")
    return tmp_path / "hanging.mp4"


_of_other_tests: set[int] = set()


@pytest.fixture(scope="module", autouse=True)
def _know_the_children_of_other_tests():
    """Pools that other modules keep open have children in this process too."""
    _of_other_tests.clear()
    _of_other_tests.update(children())


def children(of: int | None = None) -> set[int]:
    """Process ids of the decoder processes of a process (by default this one), but for those of other tests."""
    found = {child.pid for child in psutil.Process(of).children() if is_running(child.pid) and "rbft.video.child" in child.cmdline()}
    return found - _of_other_tests


def once_read(fifo: Path) -> int:
    """A descriptor to write to `fifo`, as soon as somebody reads it: a decoder that dies before is replaced, and nobody is told."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for(condition: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)


def test_a_clip_from_the_pool_is_that_of_decode_and_can_be_written_to(pool, plain):
    here, there = decode(plain, SPEC, 1.0, 7.0), pool.decode(plain, SPEC, 1.0, 7.0)
    np.testing.assert_array_equal(here.frames_THWC, there.frames_THWC)
    assert {**vars(here), "frames_THWC": None} == {**vars(there), "frames_THWC": None}
    assert there.frames_THWC.flags.writeable and there.frames_THWC.flags.c_contiguous


def test_a_file_uri_is_a_path(pool, plain):
    assert pool.decode(plain.as_uri(), SPEC).num_frames == 8


def test_errors_come_through_with_their_class_and_text(pool, plain, playlists):
    with pytest.raises(VideoMissingError, match=r"/nowhere\.mp4: no such file"):
        pool.decode("/nowhere.mp4", SPEC)
    with pytest.raises(VideoTrimError, match="leaves nothing"):
        pool.decode(plain, SPEC, start_s=99)
    with pytest.raises(VideoFormatError, match=r"hls\.mp4: "):
        pool.decode(playlists["hls.mp4"], SPEC)


def test_a_child_is_used_again_also_after_an_error_and_after_the_thread_that_asked_is_gone(pool, plain):
    pool.decode(plain, SPEC)
    before = children()
    with pytest.raises(VideoMissingError):
        pool.decode("/nowhere.mp4", SPEC)
    thread = threading.Thread(target=pool.decode, args=(plain, SPEC))
    thread.start()
    thread.join()
    pool.decode(plain, SPEC)
    assert len(before) == 1 and children() == before


def test_the_child_is_light(pool, plain):
    pool.decode(plain, SPEC)
    (child,) = children()
    loaded = Path(f"/proc/{child}/maps").read_text()
    assert "/av/" in loaded
    assert not any(heavy in loaded for heavy in ("libtorch", "/ray/", "/pyarrow/", "/pydantic_core/", "libdecord"))


def test_decord_runs_in_the_child_when_asked_for(plain):
    with DecodePool(num_workers=1, timeout_s=60) as pool:
        assert pool.decode(plain, VideoSpec(backend="decord")).backend == "decord"


def test_a_warning_in_the_child_is_logged_here(pool, plain, caplog):
    with caplog.at_level(logging.WARNING):
        pool.decode(plain, VideoSpec(max_frames=4))
    assert "frames capped" in caplog.text and plain.name in caplog.text


def test_a_hanging_video_becomes_video_timeout_error_and_the_pool_goes_on(hanging, plain):
    with DecodePool(num_workers=1, timeout_s=60) as pool:
        others = children()
        pool.decode(plain, SPEC)
        own = children() - others
        pool.timeout_s = 0.5
        with pytest.raises(VideoTimeoutError, match=r"hanging\.mp4: not decoded in 0\.5 s"):
            pool.decode(hanging, SPEC)
        assert len(own) == 1 and not any(map(is_running, own))
        pool.timeout_s = 60
        assert pool.decode(plain, SPEC).num_frames == 8


def test_a_killed_child_becomes_decoder_crash_error_for_that_video_alone(hanging, plain):
    with DecodePool(num_workers=1, timeout_s=60) as pool, ThreadPoolExecutor(1) as thread:
        others = children()
        pool.decode(plain, SPEC)
        (child,) = children() - others
        crash = thread.submit(pool.decode, hanging, SPEC)
        writer = once_read(hanging)
        os.kill(child, signal.SIGSEGV)
        with pytest.raises(DecoderCrashError, match=r"hanging\.mp4: its decoder process died \(SIGSEGV\)"):
            crash.result()
        os.close(writer)
        assert pool.decode(plain, SPEC).num_frames == 8


@pytest.mark.parametrize("program", ["/bin/false", "/nowhere"])
def test_a_child_that_cannot_start_is_told_apart_from_a_video_that_kills_its_own(program, plain, monkeypatch):
    with DecodePool(num_workers=1, timeout_s=60) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", program)
            with pytest.raises(DecoderStartError):
                pool.decode(plain, SPEC)
        assert pool.decode(plain, SPEC).num_frames == 8


def test_a_video_too_large_for_the_memory_limit_becomes_video_memory_error_and_the_pool_goes_on(write_video, plain):
    large = write_video("large.avi", codec="mjpeg", pix_fmt="yuvj420p", num_frames=1, fps=1, size=(8000, 8000))
    with DecodePool(num_workers=1, timeout_s=60, memory_limit_bytes=128 << 20) as pool:
        with pytest.raises(VideoMemoryError, match=r"large\.avi: .*video\.memory_limit_bytes"):
            pool.decode(large, SPEC)
        assert pool.decode(plain, SPEC).num_frames == 8
    with DecodePool(num_workers=1, timeout_s=60) as pool:
        assert pool.decode(large, SPEC).num_frames == 4


def test_many_threads_and_tasks_share_a_few_children(plain):
    async def all_at_once(pool: DecodePool) -> list[int | str]:
        async def one(uri: Path) -> int | str:
            try:
                return (await pool.decode_async(uri, SPEC)).num_frames
            except VideoError as error:
                return error.code

        return await asyncio.gather(*(one(Path("/nowhere.mp4") if i % 3 == 0 else plain) for i in range(12)))

    others = children()
    with DecodePool(num_workers=2, timeout_s=60) as pool, ThreadPoolExecutor(8) as threads:
        outcomes = threads.map(lambda _: pool.decode(plain, SPEC).num_frames, range(12))
        assert asyncio.run(all_at_once(pool)) == ["video_missing" if i % 3 == 0 else 8 for i in range(12)]
        assert list(outcomes) == [8] * 12
        assert 1 <= len(children() - others) <= 2


def test_a_lone_video_has_the_cores_of_idle_workers_and_one_of_many_has_one(plain):
    num_cores = min(4, len(os.sched_getaffinity(0)))
    with DecodePool(num_workers=4, timeout_s=60) as pool, ThreadPoolExecutor(3) as threads:
        with pool._lent_threads() as num_threads:
            assert num_threads == num_cores
            with pool._lent_threads() as num_threads:
                assert num_threads == max(1, num_cores // 2)
        others = [threads.submit(pool.decode, plain, SPEC) for _ in range(3)]
        assert {other.result().num_frames for other in others} == {8}
        with pool._lent_threads() as num_threads:
            assert num_threads == num_cores


def test_close_ends_the_children_and_what_they_were_at(hanging, plain):
    others = children()
    pool = DecodePool(num_workers=1, timeout_s=60)
    pool.decode(plain, SPEC)
    own = children() - others
    with ThreadPoolExecutor(1) as thread:
        under_way = thread.submit(pool.decode, hanging, SPEC)
        wait_for(under_way.running)
        pool.close()
        with pytest.raises((DecoderCrashError, RuntimeError)):
            under_way.result()
    assert own and not any(map(is_running, own))
    with pytest.raises(RuntimeError):
        pool.decode(plain, SPEC)


def test_a_killed_parent_leaves_no_child_behind(hanging, plain):
    script = f"""
        from rbft.records import VideoSpec
        from rbft.video.pool import DecodePool
        pool = DecodePool(num_workers=1)
        pool.decode({str(plain)!r}, VideoSpec())
        print("ready", flush=True)
        pool.decode({str(hanging)!r}, VideoSpec())
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        (child,) = children(parent.pid)
        parent.kill()
    wait_for(lambda: not is_running(child))
