"""`make demo`: draw the miniature world and run the whole pipeline on it. `python -m miniature.demo [--set a.b=c]`

The world goes to runs/miniature/world, the run to runs/miniature; a second run finds both and goes on where the first one stopped.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from miniature.world import sample_world
from miniature.write import write_world

ROOT = Path(__file__).resolve().parent.parent
WORLD = ROOT / "runs/miniature/world"
SEED = 20_000
"""Of a world that nothing was tuned on."""
SIZES = {"train": 512, "test": 256}


def main() -> None:
    if not (WORLD / "manifest.parquet").is_file():
        print(f"drawing {sum(SIZES.values())} clips of the miniature world", flush=True)
        write_world(WORLD, sample_world(SEED, SIZES))
    sys.argv = ["ray_jobs/pipeline.py", "--config", str(ROOT / "configs/miniature.yaml"), *sys.argv[1:]]
    runpy.run_path(str(ROOT / "ray_jobs/pipeline.py"), run_name="__main__")


if __name__ == "__main__":
    main()
