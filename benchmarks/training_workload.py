"""What the benchmark of fine-tuning trains: models and samples of two sizes, of equal and of mixed length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clips import Case, make_clip
from benchmarks.large_model import write_large_model
from benchmarks.peers.protocol import Request
from miniature.world import sample_world
from rbft.config import VideoConfig, load_config
from rbft.models.chat import ChatAdapter
from rbft.seeds import derive_seed
from rbft.video.pool import DecodePool

ROOT = Path(__file__).resolve().parent.parent

SIDE = 112
"""Of a frame: 16 tokens a second of video."""
MICRO_BATCH_SIZE, ACCUMULATION_STEPS = 4, 4
LEARNING_RATE = 1e-4
CURVE_BATCH_SIZE = 8
"""Of the runs whose losses are compared."""
LENGTHS = ("mixed", "equal")


@dataclass(frozen=True)
class Size:
    num_samples: int
    shortest_s: int
    longest_s: int
    """Mixed lengths lie between these, evenly on a logarithmic scale; equal ones are all of their geometric mean."""
    num_rounds: int

    def durations_s(self, lengths: str) -> list[int]:
        """Even numbers of seconds, drawn once for all."""
        if lengths == "equal":
            return [2 * round(math.sqrt(self.shortest_s * self.longest_s) / 2)] * self.num_samples
        draw = np.random.default_rng(derive_seed(0, "durations"))
        logs = draw.uniform(math.log(self.shortest_s), math.log(self.longest_s), self.num_samples)
        return [2 * round(math.exp(log) / 2) for log in logs]


SIZES = {"miniature": Size(128, 4, 64, num_rounds=5), "large": Size(16, 4, 32, num_rounds=3)}


def write_model(size: str, folder: Path) -> Path:
    return ROOT / "miniature/model" if size == "miniature" else write_large_model(folder / "model")


class Workload:
    """The samples of one size and distribution of lengths, on the disk in every contender's form."""

    def __init__(self, size: str, lengths: str, model: Path, folder: Path) -> None:
        self.size, self.lengths, self.model, self.folder = size, lengths, model, folder
        folder.mkdir(parents=True)
        self.durations_s = SIZES[size].durations_s(lengths)
        count = len(self.durations_s)
        video = {"max_pixels": SIDE * SIDE, "fps": 1.0}
        task = load_config(ROOT / "configs/miniature.yaml").task
        adapter = ChatAdapter(model, VideoConfig(**video).spec())
        answers = [clip.human_text for clip in sample_world(seed=5, sizes={"train": count, "test": 2})][:count]
        paths = [
            make_clip(Case(f"clip-{i}", "libx264", SIDE, SIDE, duration_s, {"preset": "veryfast"}, fps=4, speed=0.5 + i / count), folder)
            for i, duration_s in enumerate(self.durations_s)
        ]
        stored: dict[str, Any] = {}
        seconds = []
        with DecodePool(1) as pool:
            for i, (path, answer) in enumerate(zip(paths, answers, strict=True)):
                clip = pool.decode(path, adapter.spec)
                sample = adapter.encode(clip, task.rationale_messages(), answer)
                stored |= {
                    f"frames_{i}": clip.frames_THWC,
                    f"input_ids_{i}": sample.input_ids_L.numpy(),
                    f"labels_{i}": sample.labels_L.numpy(),
                }
                seconds.append(sample.second_per_grid_ts)
        np.savez(folder / "samples.npz", second_per_grid_ts=np.array(seconds), **stored)
        self.num_tokens = [len(stored[f"input_ids_{i}"]) for i in range(count)]
        self.num_supervised = sum(int((stored[f"labels_{i}"] >= 0).sum()) for i in range(count))
        self.request = Request(
            model=str(model),
            samples=str(folder / "samples.npz"),
            folder="",
            num_samples=count,
            micro_batch_size=MICRO_BATCH_SIZE,
            accumulation_steps=ACCUMULATION_STEPS,
            num_rounds=1,
            learning_rate=LEARNING_RATE,
            is_grouped=False,
            counts_flops=False,
            extra={"videos": [str(path) for path in paths], "answers": answers, "video": video},
        )
