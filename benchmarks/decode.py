"""Our decoding against that of decord, PyAV, OpenCV and torchcodec used plainly: one frame a second, at the model's size.

Ours is a warm `DecodePool`, process and pipe included, one video at a time; the others run in this process, with as many threads as they
like. Each peer is tried in its plain forms and the quickest counts. Contenders take turns, warm, and medians are compared. A contender that
gives another frame than the one on the screen is named and does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
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

_TRIAL_SHARE = 10
"""A clip of 30 s and more is first tried on a tenth, and given up by who would take twice as long again as `_OUT_OF_THE_RUNNING` says:
seeking in long groups of pictures takes minutes."""

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
    frames: list[np.ndarray] = []
    for second in range(duration_s):
        frames.append(reader.next().asnumpy())
        reader.skip_frames(round((second + 1) * fps) - round(second * fps) - 1)
    return frames


def pyav_sequential(path: str, duration_s: int, fps: float, height: int, width: int) -> Frames:
    frames: list[np.ndarray] = []
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
    frames: list[np.ndarray] = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for second in range(duration_s):
            container.seek(int(second / stream.time_base), stream=stream)
            frame = next(frame for frame in container.decode(stream) if frame.time >= second - 1e-3)
            frames.append(frame.reformat(width, height, "rgb24").to_ndarray())
    return frames


def opencv_grab(path: str, duration_s: int, fps: float, height: int, width: int) -> Frames:
    capture, place = _opencv(path), 0
    frames: list[np.ndarray] = []
    for second in range(duration_s):
        while place < round(second * fps):
            capture.grab()
            place += 1
        frames.append(_opencv_frame(capture, height, width))
        place += 1
    return frames


def opencv_seek(path: str, duration_s: int, fps: float, height: int, width: int) -> Frames:
    capture = _opencv(path)
    frames: list[np.ndarray] = []
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
    decoders, transforms = import_module("torchcodec.decoders"), import_module("torchcodec.transforms")
    resize = transforms.Resize((height, width))
    decoder = decoders.VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=0, transforms=[resize])
    frames: np.ndarray = decoder.get_frames_played_at([float(second) for second in range(duration_s)]).data.numpy()
    return frames


PEERS: dict[str, dict[str, Contender]] = {
    "decord": {"get_batch": decord_batch, "sequential": decord_sequential},
    "pyav": {"sequential": pyav_sequential, "seeking": pyav_seeking},
    "opencv": {"grab": opencv_grab, "seek": opencv_seek},
    "torchcodec": {"played_at": torchcodec_at},
}


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the figures too")
    parser.add_argument("--cases", nargs="+", metavar="TEXT", default=[""], help="only cases whose name holds one of these")
    parser.add_argument("--clips", type=Path, metavar="DIR", help="where clips are made, and found again; else in a folder that is removed")
    chosen = parser.parse_args(arguments)
    cases = [case for case in CASES if any(text in case.name for text in chosen.cases)]
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = chosen.clips or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rbft-bench-")))
        folder.mkdir(parents=True, exist_ok=True)
        paths = [str(make_clip(case, folder)) for case in cases]
        print(f"{len(cases)} clips after {time.monotonic() - started:.0f} s", flush=True)
        pool = stack.enter_context(DecodePool(os.cpu_count() or 1))
        results = [measure(case, path, pool) for case, path in zip(cases, paths, strict=True)]
        throughput = measure_throughput([path for case, path in zip(cases, paths, strict=True) if case.duration_s <= 60])
    text = page(results, throughput, time.monotonic() - started)
    print(f"\n{text}")
    if len(cases) == len(CASES):
        RESULT.write_text(text)
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=1) + "\n")


def measure(case: Case, path: str, pool: DecodePool) -> dict[str, Any]:
    """One case's figures: the medians of all contenders, in turns."""

    def ours(path: str, duration_s: int, fps: float, height: int, width: int) -> Frames:
        return pool.decode(path, SPEC).frames_THWC

    height, width = fit_size(case.height, case.width, SPEC)
    contenders = {OURS: ours} | {f"{peer} {form}": run for peer, forms in PEERS.items() for form, run in forms.items()}
    seconds: dict[str, list[float]] = {}
    wrong: dict[str, str] = {}
    ours(path, case.duration_s, case.fps, height, width)  # starts the child
    expected = ours(path, case.duration_s, case.fps, height, width)
    for name, run in contenders.items():
        try:
            if name != OURS and case.duration_s >= 30:
                trial, _ = _timed(run, path, case.duration_s // _TRIAL_SHARE, case.fps, height, width)
                if trial[0] * _TRIAL_SHARE > 2 * _OUT_OF_THE_RUNNING * seconds[OURS][0]:
                    wrong[name] = f"too slow: {trial[0]:.2f} s for a tenth of the clip"
                    continue
            seconds[name], frames = _timed(run, path, case.duration_s, case.fps, height, width)
        except Exception as error:  # noqa: BLE001  # whatever a peer cannot do is its result here
            wrong[name] = _reason(error, path)
        else:
            differences = [float(np.abs(a.astype(np.int16) - b).mean()) for a, b in zip(frames, expected, strict=True)]
            if num_others := sum(difference > _MAX_DIFFERENCE for difference in differences):
                wrong[name] = f"{num_others} of {len(differences)} frames are others"
    best_s = min(times[0] for name, times in seconds.items() if name not in wrong)
    in_the_running = [name for name in seconds if name not in wrong and (name == OURS or seconds[name][0] < _OUT_OF_THE_RUNNING * best_s)]
    for name in in_the_running:
        seconds[name] = []
    num_rounds = min(_ROUNDS, max(2, int(_ROUND_BUDGET_S / (len(in_the_running) * best_s))))
    for turn in range(num_rounds):
        for name in in_the_running[turn % len(in_the_running) :] + in_the_running[: turn % len(in_the_running)]:
            try:
                seconds[name] += _timed(contenders[name], path, case.duration_s, case.fps, height, width)[0]
            except Exception as error:  # noqa: BLE001  # decord fails now and then
                wrong[name] = _reason(error, path)
    medians = {name: statistics.median(times) for name, times in seconds.items() if times}
    best = min((name for name in medians if name != OURS and name not in wrong), key=medians.__getitem__)
    result = {
        "case": case.name,
        "duration_s": case.duration_s,
        "seconds": medians[OURS],
        "best_seconds": medians[best],
        "ratio_vs_best": medians[OURS] / medians[best],
        "best": best,
        "all_seconds": medians,
        "not_counted": wrong,
        "num_rounds": num_rounds,
    }
    print(f"{case.name}: {medians[OURS]:.3f} s, best {best} {medians[best]:.3f} s, ratio {result['ratio_vs_best']:.2f}", flush=True)
    return result


def measure_throughput(paths: list[str]) -> dict[str, float]:
    """Videos a second of a pool with a worker a core that is kept busy, with idle workers' cores lent or not, and of one worker."""
    num_cores = os.cpu_count() or 1
    seconds: dict[str, list[float]] = {"lent": [], "one thread each": []}
    with DecodePool(num_cores) as lending, contextlib.ExitStack() as stack:
        single = [stack.enter_context(DecodePool(1)) for _ in range(num_cores)]  # a pool of one lends nothing
        for turn in range(3 + 1):
            for name, times in seconds.items():
                pools = [lending] * num_cores if name == "lent" else single
                waiting = queue.SimpleQueue[str]()
                for path in paths * 2:
                    waiting.put(path)
                begun = time.perf_counter()
                with ThreadPoolExecutor(num_cores) as threads:
                    list(threads.map(lambda pool: _drain(waiting, pool), pools))  # noqa: B023
                if turn:  # the first one starts the children
                    times.append(time.perf_counter() - begun)
    return {name: 2 * len(paths) / statistics.median(times) for name, times in seconds.items()}


def _drain(waiting: queue.SimpleQueue[str], pool: DecodePool) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            pool.decode(waiting.get_nowait(), SPEC)


def _reason(error: Exception, path: str) -> str:
    """The first line of what a peer said, with the clip's name alone."""
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return first.replace(f"{Path(path).parent}/", "")


def _timed(run: Contender, path: str, duration_s: int, fps: float, height: int, width: int) -> tuple[list[float], Frames]:
    begun = time.perf_counter()
    frames = run(path, duration_s, fps, height, width)
    return [time.perf_counter() - begun], frames


def page(results: list[dict[str, Any]], throughput: dict[str, float], total_s: float) -> str:
    """The result page of a run that took `total_s`."""
    peers = list(PEERS)
    rows = []
    for result in results:
        cells = []
        for peer in peers:
            forms = {name: s for name, s in result["all_seconds"].items() if name.startswith(peer) and name not in result["not_counted"]}
            best = min(forms, key=forms.__getitem__, default=None)
            cells.append("-" if best is None else f"{forms[best]:.3f} ({best.removeprefix(peer).strip()})")
        slower_ms = 1000 * (result["seconds"] - result["best_seconds"])
        rows.append(
            f"| {result['case']} | {result['seconds']:.3f} | {' | '.join(cells)} | {result['ratio_vs_best']:.2f} | {slower_ms:+.0f} |"
        )
    not_counted = sorted({f"- {name}, {result['case']}: {why}" for result in results for name, why in result["not_counted"].items()})
    table = "\n".join(rows)
    return f"""# Decoding at one frame a second

`python -m benchmarks decode`, {time.strftime("%Y-%m-%d")}, on {describe_machine()}. {", ".join(_versions())}.
The whole run took {total_s / 60:.1f} min. Seconds a video, medians of at most {_ROUNDS} interleaved rounds, warm; "rbft" is a warm
`DecodePool`, its process and pipe included. Of each peer its quickest plain form, with as many threads as it likes; frames at
0, 1, 2, … s, at the model's size.
Goal: ratio at most 1.10 for 30 s and more, at most 15 ms slower for shorter ones.

| case | rbft | {" | ".join(peers)} | ratio | slower by, ms |
| --- | ---: | {" | ".join("---:" for _ in peers)} | ---: | ---: |
{table}

All workers busy, videos a second of all clips up to 60 s: {", ".join(f"{rate:.2f} ({name})" for name, rate in throughput.items())}.

Not counted, because a contender could not or gave other frames:

{chr(10).join(not_counted)}
"""


def _versions() -> Iterator[str]:
    for package in ("av", "decord", "opencv-python-headless", "torchcodec"):
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            yield f"{package} not installed"


if __name__ == "__main__":
    main(sys.argv[1:])
