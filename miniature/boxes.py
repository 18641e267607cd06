"""The boxes of a drawn world as the file that `evaluation.masking.boxes` wants: where its subjects really are.

`python -m miniature.boxes FOLDER` writes `boxes.parquet` beside the world's `truth.parquet`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pyarrow.parquet as pq

from miniature.draw import FRAME_SIDE
from rbft.evaluation.looking.box_files import write_boxes
from rbft.evaluation.looking.boxes import Box


def write_world_boxes(folder: Path) -> Path:
    """The path of `boxes.parquet` in the world's `folder`: the subject's box in each of a clip's frames, one a second."""
    boxes = {}
    for row in pq.read_table(folder / "truth.parquet", columns=["id", "subject", "boxes"]).to_pylist():
        boxes[row["id"]] = [
            Box(x0 / FRAME_SIDE, y0 / FRAME_SIDE, x1 / FRAME_SIDE, y1 / FRAME_SIDE, time_s=float(second), name=row["subject"])
            for second, (x0, y0, x1, y1) in enumerate(json.loads(row["boxes"]))
        ]
    return write_boxes(folder / "boxes.parquet", boxes)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m miniature.boxes", description="Write where the subjects of a drawn world are.")
    parser.add_argument("folder", type=Path, help="a world that `python -m miniature.world` or `make demo` wrote")
    print(f"wrote {write_world_boxes(parser.parse_args().folder)}")


if __name__ == "__main__":
    main()
