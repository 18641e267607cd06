"""Our decoding against that of decord, PyAV, OpenCV and torchcodec used plainly: one frame a second, at the model's size.

Ours is a warm `DecodePool`, process and pipe included, one video at a time; the others run in this process, with as many threads as they like.
Each peer is tried in its plain forms and the quickest counts. Contenders take turns, warm, and medians are compared. A contender that
gives another frame than the one on the screen is named and does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import av
import cv2
import decord
import numpy as np

from benchmarks.clips import CASES, Case, make_clip
from benchmarks.machine import describe_machine
from rbft.records import VideoSpec
from rbft.video.pool import DecodePool
from rbft.video.sampling import fit_size

RESULT = Path(__file__).resolve().parent / "results/decode.md"

SPEC = VideoSpec(max_frames=1024)
"""The paper's, without its cap on frames: the ten minutes are sampled at 1 FPS as well."""

OURS = "rbft"

_ROUNDS = 5
_ROUND_BUDGET_S = 40.0
"""A case whose contenders take longer gets fewer rounds, but no fewer than two."""

_OUT_OF_THE_RUNNING = 2.0
"""Who took this many times the best in the warm-up is not asked again; its warm-up is its time."""

_MAX_DIFFERENCE = 8.0
"""Mean absolute difference, of 255, between a contender's frame and ours. The ways of scaling differ by less, the next frame by more."""

Frames = Sequence[np.ndarray] | np.ndarray
Contender = Callable[[str, int, float, int, int], Frames]
"""(path, seconds, fps, height, width) to the frames on the screen at 0, 1, 2, … s: uint8 RGB, [H, W, 3] each."""


def decord_batch(path: str, duration_s: int, fps: float, height: int, width: int) -> Frames:
    reader = decord.VideoReader(path, width=width, height=height)
    frames: np.ndarray = reader.get_batch([round(second * fps) for second in range(duration_s)]).asnumpy()
    return frames


def decord_sequential(path: str, duration_s: int, fps: float, height: int, width: int) -> Frames:
    reader = decord.VideoReader(path, width=width, height=height)
    frames = []
    for second in range(duration_s):
        frames.append(reader.next().asnumpy())
        reader.skip_frames(round((second + 1) * fps) - round(second * fps) - 1)
    return frames


def pyav_sequential(path: str, duration_s: int, fps: float, height: int, width: int) -> Frames:
    frames = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if frame.time >= len(frames) - 1e-3:
                frames.append(frame.reformat(width, height, "rgb24").to_ndarray())
                if len(frames) == duration_s:
                    break
    return frames


def pyav_seeking(path: str, duration_s: int, fps: float, height: int, width: int) -> Frames:
    frames = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for second in range(duration_s):
            container.seek(int(second / stream.time_base), stream=stream)
            frame = next(frame for frame in container.decode(stream) if frame.time >= second - 1e-3)
            frames.append(frame.reformat(width, height, "rgb24").to_ndarray())
    return frames


def opencv_grab(path: str, duration_s: int, fps: float, height: int, width: int) -> Frames:
    capture, frames, place = _opencv(path), [], 0
    for second in range(duration_s):
        while place < round(second * fps):
            capture.grab()
            place += 1
        frames.append(_opencv_frame(capture, height, width))
        place += 1
    return frames


def opencv_seek(path: str, duration_s: int, fps: float, height: int, width: int) -> Frames:
    capture, frames = _opencv(path), []
    for second in range(duration_s):
        capture.set(cv2.CAP_PROP_POS_FRAMES, round(second * fps))
        frames.append(_opencv_frame(capture, height, width))
    return frames


def _opencv(path: str) -> cv2.VideoCapture:
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise ValueError("cannot open it")
    return capture


def _opencv_frame(capture: cv2.VideoCapture, height: int, width: int) -> np.ndarray:
    is_read, bgr = capture.read()
    if not is_read:
        raise ValueError("cannot decode it")
    return cv2.cvtColor(cv2.resize(bgr, (width, height), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)


def torchcodec_at(path: str, duration_s: int, fps: float, height: int, width: int) -> Frames:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=0, seek_mode="approximate", transforms=[Resize((height, width))])
    frames: np.ndarray = decoder.get_frames_played_at([float(second) for second in range(duration_s)]).data.numpy()
    return frames


PEERS: dict[str, dict[str, Contender]] = {
    "decord": {"get_batch": decord_batch, "sequential": decord_sequential},
    "pyav": {"sequential": pyav_sequential, "seeking": pyav_seeking},
    "opencv": {"grab": opencv_grab, "seek": opencv_seek},
    "torchcodec": {"played_at": torchcodec_at},
}


def main(json_path: Path | None = None, cases: Sequence[Case] = CASES, clips_dir: Path | None = None) -> None:
    """Measure, print the table and write it to `benchmarks/results/decode.md` (when all cases ran), the figures to `json_path`.

    Clips are made in `clips_dir` where they are not there yet; without one, in a folder that is removed.
    """
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = clips_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rbft-bench-")))
        folder.mkdir(parents=True, exist_ok=True)
        for case in cases:
            print(f"clip {case.name}", flush=True)
            make_clip(case, folder)
        made_s = time.monotonic() - started
        with DecodePool() as pool:
            results = [show(measure(case, make_clip(case, folder), pool)) for case in cases]
            loads = [load(case, make_clip(case, folder)) for case in cases]
    text = page(results, made_s, time.monotonic() - started)
    print(f"\n{text}")
    if tuple(cases) == CASES:
        RESULT.write_text(text)
    if json_path is not None:
        json_path.write_text(json.dumps(results, indent=1) + "\n")
