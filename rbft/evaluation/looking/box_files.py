"""Boxes as a file: CSV, TSV, JSON lines or Parquet, a row a box.

Columns: `id` (of the manifest), `x0`, `y0`, `x1`, `y1` (shares of width and height, 0,0 the upper left corner), and, where wanted, `time_s`
or `frame`, `name`, `score`; `Box` says what each means.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rbft.data.tables import Row, read_rows
from rbft.errors import DataError
from rbft.evaluation.looking.boxes import Box

if TYPE_CHECKING:
    import pyarrow as pa

_CORNERS = ("x0", "y0", "x1", "y1")


def read_boxes(path: str | Path) -> dict[str, tuple[Box, ...]]:
    """Video id -> its boxes, in the file's order. `DataError` with the line for what is no box, and for a file without any."""
    boxes: defaultdict[str, list[Box]] = defaultdict(list)
    for row in read_rows(Path(path)):
        boxes[row.required("id")].append(_box(row))
    if not boxes:
        raise DataError(f"{path}: holds no boxes; give a row a box with the columns id, {', '.join(_CORNERS)}")
    return {id_: tuple(found) for id_, found in boxes.items()}


def write_boxes(path: str | Path, boxes: Mapping[str, Sequence[Box]]) -> Path:
    """`boxes` by video id as Parquet in the file `path`; returns it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [pa.field("id", pa.string(), nullable=False), *(pa.field(name, pa.float64(), nullable=False) for name in _CORNERS)]
    fields += [pa.field("time_s", pa.float64()), pa.field("frame", pa.int64())]
    fields += [pa.field("name", pa.string()), pa.field("score", pa.float64())]
    rows = [{"id": id_, **asdict(box)} for id_, of_video in boxes.items() for box in of_video]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), path)
    return Path(path)


def found_schema() -> pa.Schema:
    """Of what a model has found, a row a video as it goes on: its boxes as JSON text, or an error."""
    import pyarrow as pa

    fields = [pa.field("id", pa.string(), nullable=False), pa.field("boxes", pa.string()), pa.field("num_unreadable", pa.int64())]
    return pa.schema([*fields, pa.field("error_code", pa.string())], metadata={"rbft.schema": "found_boxes", "rbft.schema_version": "1"})


def found_table(video_id: str, boxes: Sequence[Box], num_unreadable: int, error_code: str | None) -> pa.Table:
    """One video as a table of `found_schema`. `num_unreadable`: answers that were no boxes."""
    import pyarrow as pa

    row = {"id": video_id, "num_unreadable": num_unreadable, "error_code": error_code}
    return pa.Table.from_pylist([row | {"boxes": json.dumps([asdict(box) for box in boxes])}], schema=found_schema())


def boxes_from_table(table: pa.Table) -> dict[str, tuple[Box, ...]]:
    """Video id -> its boxes, of a table of `found_schema`."""
    return {row["id"]: tuple(Box(**box) for box in json.loads(row["boxes"])) for row in table.to_pylist()}


def _box(row: Row) -> Box:
    corners = [row.number(name) for name in _CORNERS]
    frame = row.number("frame")
    if missing := [name for name, value in zip(_CORNERS, corners, strict=True) if value is None]:
        raise DataError(f"{row.where}: column {missing[0]!r} is empty; give x0, y0, x1, y1 as shares of the frame")
    if frame is not None and not (frame >= 0 and frame.is_integer()):
        raise DataError(f"{row.where}: frame {frame:g} is no number of a frame; count from 0, or give time_s")
    x0, y0, x1, y1 = (value for value in corners if value is not None)
    moment = None if frame is None else int(frame)
    try:
        return Box(x0, y0, x1, y1, row.number("time_s"), moment, row.text("name"), row.number("score"))
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from None
