"""Clips as files: mp4 at one frame a second, `manifest.parquet` for the pipeline, `truth.parquet` for whoever scores it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from miniature.draw import render
from miniature.world import WorldClip, sample_world


def encode_mp4(frames_THWC: NDArray[np.uint8]) -> bytes:
    """The bytes of an H.264 mp4 at 1 fps; the same frames give the same bytes (one thread, no dates, no encoder build string).

    Without x264's assembly: its macroblock tree reads beyond a row of seven blocks there, and what lies in memory decides on bits.
    """
    import av

    options = {"crf": "18", "preset": "veryfast", "threads": "1", "x264-params": "asm=0"}
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=1, options=options)
        stream.width, stream.height, stream.pix_fmt = frames_THWC.shape[2], frames_THWC.shape[1], "yuv420p"
        stream.time_base = Fraction(1, 1)
        for number, frame_HWC in enumerate(frames_THWC):
            frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode_mp4(data: bytes) -> NDArray[np.uint8]:
    """Every frame of an mp4 of ours, uint8 RGB [num_frames, height, width, 3]. For our own bytes only; others go through `rbft.video`."""
    import av

    with av.open(io.BytesIO(data), format="mp4") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def drawn_world(folder: Path, seed: int, sizes: dict[str, int], task: str = "miniature") -> Path:
    """The manifest of target world `seed` in `folder`, which is drawn there unless it is there already."""
    manifest = folder / "manifest.parquet"
    if not manifest.is_file():
        print(f"drawing {sum(sizes.values())} clips of miniature world {seed}", flush=True)
        write_world(folder, sample_world(seed, sizes, task))
    return manifest


def write_world(folder: Path, clips: Sequence[WorldClip]) -> Path:
    """The path of `manifest.parquet` in `folder`, beside `truth.parquet` and `clips/<id>.mp4`.

    Clips of the split "unlabelled" become training rows without a label and without the true caption.
    `truth.parquet` has a row a clip: id, split, label, severity, the four slots, boxes (JSON, [8][x0, y0, x1, y1] in pixels).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rbft.records import manifest_schema

    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rows, truth = [], []
    for clip in clips:
        frames, boxes = render(clip.plan)
        uri = f"clips/{clip.plan.id}.mp4"
        (folder / uri).write_bytes(encode_mp4(frames))
        told = clip.split != "unlabelled"
        rows.append(
            {
                "id": clip.plan.id,
                "uri": uri,
                "label": clip.label if told else None,
                "split": clip.split if told else "train",
                "human_text": clip.human_text if told else None,
                "context": clip.context,
            }
        )
        slots = asdict(clip.plan.slots)
        box_text = json.dumps(np.round(boxes.astype(float), 1).tolist())
        truth.append(
            {"id": clip.plan.id, "split": clip.split, "label": clip.label, "severity": clip.plan.severity, **slots, "boxes": box_text}
        )
    pq.write_table(pa.Table.from_pylist(truth), folder / "truth.parquet")
    path = folder / "manifest.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=manifest_schema()), path)
    return path
