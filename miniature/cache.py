"""The base model's training clips, rendered once: general clips through a real mp4 and back, kept as uint8 arrays in shards.

A shard is written whole or not at all, so a run that was cut short goes on where it stopped.
"""

from __future__ import annotations

import os
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from miniature.draw import FRAME_SIDE, NUM_FRAMES, render
from miniature.world import sample_general
from miniature.write import decode_mp4, encode_mp4

SHARD_CLIPS = 500


def _render_shard(job: tuple[Path, int, int]) -> Path:
    path, seed, first = job
    clips = [render(sample_general(seed, "train", first + k))[0] for k in range(SHARD_CLIPS)]
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.save(file, np.stack([decode_mp4(encode_mp4(frames)) for frames in clips]))
    partial.replace(path)
    return path


def general_clips(folder: Path, seed: int, num_clips: int, num_processes: int) -> list[NDArray[np.uint8]]:
    """Shards of `SHARD_CLIPS` training clips of the general domain, uint8 [500, 8, 84, 84, 3] each, memory-mapped; renders what is missing.

    Clip i is `sample_general(seed, "train", i)`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    firsts = range(0, num_clips, SHARD_CLIPS)
    paths = [folder / f"general-{seed}-{first:06d}.npy" for first in firsts]
    missing = [(path, seed, first) for path, first in zip(paths, firsts, strict=True) if not path.exists()]
    if missing:
        with get_context("spawn").Pool(num_processes) as pool:
            for done, path in enumerate(pool.imap_unordered(_render_shard, missing), 1):
                print(f"rendered {path.name}, {done} of {len(missing)} shards", flush=True)
    shards = [np.load(path, mmap_mode="r") for path in paths]
    for path, shard in zip(paths, shards, strict=True):
        if shard.shape != (SHARD_CLIPS, NUM_FRAMES, FRAME_SIDE, FRAME_SIDE, 3):
            raise ValueError(f"{path}: holds {shard.shape}, not clips of this world; delete it")
    return shards


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(prog="python -m miniature.cache", description="Render the base model's training clips.")
    parser.add_argument("--cache", type=Path, default=Path("runs/base/clips"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=20_000)
    args = parser.parse_args()
    general_clips(args.cache, args.seed, args.clips, num_processes=2)


if __name__ == "__main__":
    main()
