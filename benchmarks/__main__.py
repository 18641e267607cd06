"""`make bench`: every benchmark, one after the other. `python -m benchmarks [NAME [its options]]`"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from benchmarks import (
    clip_cache,
    cluster,
    decode,
    demo,
    evaluation,
    evidence,
    generation,
    gpu_training,
    looking,
    repeatability,
    scale,
    serving,
    training,
    video_models,
)

BENCHMARKS: dict[str, Callable[[Sequence[str]], None]] = {
    "generation": generation.main,
    "evaluation": evaluation.main,
    "decode": decode.main,
    "clip_cache": clip_cache.main,
    "scale": scale.main,
    "cluster": cluster.main,
    "training": training.main,
    "serving": serving.main,
    "looking": looking.main,
    "video_models": video_models.main,
    "repeatability": repeatability.main,
    "gpu_training": gpu_training.main,
    "demo": lambda _: demo.main(),
    "evidence": lambda _: evidence.main(),
}


def main() -> None:
    """`--json PATH` is an option of most; each one's `--help` has its own."""
    names, options = sys.argv[1:2] or list(BENCHMARKS), sys.argv[2:]
    if unknown := [name for name in names if name not in BENCHMARKS]:
        sys.exit(f"no such benchmark: {unknown[0]}; there are {', '.join(BENCHMARKS)}")
    for name in names:
        BENCHMARKS[name](options)


if __name__ == "__main__":
    main()
