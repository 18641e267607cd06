"""How the attention at a prompt's label position is shared out, and the rows in which such maps are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True)
class AttentionMap:
    """How the attention at one prompt's label position is shared out."""

    shares_L: NDArray[np.float32]
    """By position of the prompt; sums to one. A gradient map of zeros, where nothing speaks for the answer, sums to zero."""
    grid_THW: NDArray[np.float32]
    """Those of the video tokens, in their grid: [frames / 2, height / 28, width / 28] for Qwen2-VL and Qwen2.5-VL."""

    @property
    def video_share(self) -> float:
        """Of the attention, what goes to the video at all."""
        return float(self.grid_THW.sum())

    @property
    def scaled_THW(self) -> NDArray[np.float32]:
        """The grid from its smallest (0) to its largest value (1); zeros if they are the same."""
        low, high = self.grid_THW.min(), self.grid_THW.max()
        return (self.grid_THW - low) / (high - low) if high > low else np.zeros_like(self.grid_THW)


def map_schema() -> pa.Schema:
    """Of the kept maps, a row a video; an error row has no map."""
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("shares", pa.list_(pa.float32())),
        pa.field("grid", pa.list_(pa.float32())),
    ]
    fields += [pa.field("grid_shape", pa.list_(pa.int32())), pa.field("error_code", pa.string())]
    return pa.schema(fields, metadata={"rbft.schema": "attention_maps", "rbft.schema_version": "1"})


def maps_table(maps: Mapping[str, AttentionMap], errors: Mapping[str, str]) -> pa.Table:
    """Video id -> map, and video id -> error code, as a table of `map_schema`."""
    rows: list[dict[str, object]] = [
        {"id": id_, "shares": each.shares_L, "grid": each.grid_THW.ravel(), "grid_shape": each.grid_THW.shape} for id_, each in maps.items()
    ]
    return pa.Table.from_pylist([*rows, *({"id": id_, "error_code": code} for id_, code in errors.items())], schema=map_schema())


def maps_from_table(table: pa.Table) -> dict[str, AttentionMap]:
    """Video id -> map, of the rows that have one."""
    return {
        row["id"]: AttentionMap(
            np.array(row["shares"], dtype=np.float32), np.array(row["grid"], dtype=np.float32).reshape(row["grid_shape"])
        )
        for row in table.to_pylist()
        if row["error_code"] is None
    }
