"""Rationales as Arrow tables and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import pyarrow as pa

from rbft.records import Rationale, rationale_schema

_MAPS = ("sections", "provenance")


def rationales_table(rationales: Sequence[Rationale]) -> pa.Table:
    """The rationales as a table of `rationale_schema`, the two maps as JSON text."""
    rows = [asdict(rationale) for rationale in rationales]
    return pa.Table.from_pylist(
        [row | {name: json.dumps(row[name], ensure_ascii=False) for name in _MAPS} for row in rows], schema=rationale_schema()
    )


def rationales_from_table(table: pa.Table) -> list[Rationale]:
    """The rationales in a table of `rationale_schema`."""
    return [Rationale(**(row | {name: json.loads(row[name] or "{}") for name in _MAPS})) for row in table.to_pylist()]
