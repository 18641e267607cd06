"""What an epoch gains when decoded clips are kept on the disk. `python -m benchmarks clip_cache [--json PATH]`

Samples a second of what feeds a training step (decode, encode), alone: without the cache, in the epoch that fills it and in one that finds
all of it. In turns, on clips like those of a camera.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.clips import CASES, make_clip
from benchmarks.machine import describe_machine
from ray_jobs.run import versions
from rbft.config import load_config
from rbft.data.samples import SampleEncoder, TrainingItem
from rbft.models.chat import ChatAdapter
from rbft.records import Example, VideoSpec
from rbft.video.clip_cache import ClipCache
from rbft.video.pool import DecodePool

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/clip_cache.md"
NAMES = ("h264-720p-30s-long-gop", "h264-720p-60s-short-gop", "h264-360p-8s-long-gop")
NUM_VIDEOS, NUM_ROUNDS = 16, 5


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clip_cache")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the figures too")
    chosen = parser.parse_args(arguments)
    task = load_config(ROOT / "configs/miniature.yaml").task
    adapter = ChatAdapter(ROOT / "miniature/model", VideoSpec())
    num_threads = os.cpu_count() or 1
    rows, figures = [], {}
    with tempfile.TemporaryDirectory(prefix="rbft-bench-") as temporary, DecodePool(num_threads) as pool:
        for case in (case for case in CASES if case.name in NAMES):
            folder = Path(temporary) / case.name
            folder.mkdir()
            first = make_clip(case, folder)
            paths = [Path(shutil.copyfile(first, folder / f"{i}.mp4")) for i in range(NUM_VIDEOS)]
            items = [TrainingItem(Example(path.stem, str(path)), task.question_messages(), task.labels[0]) for path in paths]
            seconds: dict[str, list[float]] = {"without": [], "filling": [], "filled": []}
            stored = 0.0
            for round_ in range(NUM_ROUNDS + 1):
                clips = ClipCache(folder / f"clips-{round_}", 20 << 30)
                for name, cache in (("without", None), ("filling", clips), ("filled", clips)):
                    with contextlib.closing(SampleEncoder(adapter, pool, num_threads, cache)) as encoder:
                        started = time.monotonic()
                        num_samples = sum(1 for _ in encoder.stream(items))
                        seconds[name].append((time.monotonic() - started) / num_samples)
                stored = sum(path.stat().st_size for path in (folder / f"clips-{round_}").glob("*.clip")) / NUM_VIDEOS
                shutil.rmtree(folder / f"clips-{round_}")
            medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}  # the first warms up
            gains = [without / filled for without, filled in zip(seconds["without"][1:], seconds["filled"][1:], strict=True)]
            figures[case.name] = {"gain": statistics.median(gains), "bytes_per_clip": stored, **medians}
            rows.append(
                f"| {case.name} | {stored / 1e6:.1f} | {medians['without'] * 1e3:.0f} | {medians['filling'] * 1e3:.0f} "
                f"| {medians['filled'] * 1e3:.0f} | {statistics.median(gains):.1f} [{min(gains):.1f}, {max(gains):.1f}] |"
            )
            print(rows[-1], flush=True)
    table = "\n".join(rows)
    used = ", ".join(
        f"{package} {version}" for package, version in versions().items() if package in ("rbft", "torch", "transformers", "av")
    )
    RESULT.write_text(f"""# What decoded clips on the disk save

`python -m benchmarks clip_cache`, {time.strftime("%Y-%m-%d")}, on {describe_machine()}. {used}.
Milliseconds a sample of decoding and encoding, on {num_threads} threads, {NUM_VIDEOS} videos at 1 FPS; medians of
{NUM_ROUNDS} rounds in turns, and the range of the rounds' gains. The files are in the page cache; what a disk adds, it adds to both.

| clip | MB in the cache | without | epoch that fills it | later epochs | gain |
| --- | ---: | ---: | ---: | ---: | ---: |
{table}
""")
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
