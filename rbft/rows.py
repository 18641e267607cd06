"""Rows that grow part by part and end as one table: how generation and evaluation keep what they have done.

A part is the Parquet file of one block of videos, named by the ids in it: a block that is done again after a failure replaces its own
file. A part appears whole or not at all, so what is on disk is exactly what is done; `done_ids` is the whole resume logic. `finish` joins
the parts, one row an id, and marks the folder complete.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from rbft import artifacts, attempts, storage
from rbft.errors import ArtifactError, JobError
from rbft.records import check_schema


def write_part(folder: str, table: pa.Table) -> str:
    """Write one block's rows to `folder`; the URI of the part."""
    uri = _part_uri(folder, table["id"].to_pylist())
    storage.write_table(uri, table)
    return uri


def _part_uri(folder: str, ids: Iterable[str]) -> str:
    return f"{folder}/parts/{artifacts.fingerprint(sorted(ids))}.parquet"


def read_parts(folder: str, schema: pa.Schema) -> pa.Table:
    """All rows in the parts of `folder`, one an id (and sample): where two parts hold an id, one without an error counts, else the first
    by name."""
    tables = []
    scheme = folder.partition("://")[0] + "://" if "://" in folder else ""
    for info in storage.list_files(f"{folder}/parts"):
        if not info.path.endswith(".parquet"):
            continue
        table = storage.read_table(f"{scheme}{info.path}")
        check_schema(table.schema, schema, info.path)
        tables.append(table)
    if not tables:
        return schema.empty_table()
    rows = pa.concat_tables(tables)
    key = list(zip(rows["id"].to_pylist(), rows["sample"].to_pylist() if "sample" in rows.column_names else [0] * len(rows), strict=True))
    is_error = [code is not None for code in rows["error_code"].to_pylist()]
    best_last = sorted(range(len(key)), key=lambda index: (is_error[index], index), reverse=True)
    first = {key[index]: index for index in best_last}
    return rows.take(sorted(first.values())) if len(first) < len(rows) else rows


def done_ids(folder: str, schema: pa.Schema, *, errors_too: bool = True) -> set[str]:
    """The ids that have a row already; without `errors_too` only those whose row is no error."""
    rows = read_parts(folder, schema)
    codes = rows["error_code"].to_pylist()
    return {id_ for id_, code in zip(rows["id"].to_pylist(), codes, strict=True) if errors_too or code is None}


def has_part(folder: str, ids: Iterable[str]) -> bool:
    """Whether the rows of this very block are written."""
    return storage.exists(_part_uri(folder, ids))


def reopen(folder: str, schema: pa.Schema) -> int:
    """Take the mark off a complete `folder` that has error rows, so that those can be done again; how many there are.

    They count as not done from now on (`done_ids(..., errors_too=False)`); if they fail again, their rows are still there.
    """
    num_errors = sum(code is not None for code in read_parts(folder, schema)["error_code"].to_pylist())
    if num_errors:
        storage.delete_file(f"{folder}/{artifacts.MARKER}")
    return num_errors


def finish(folder: str, name: str, schema: pa.Schema, ids: Iterable[str], fingerprint: str, lineage: dict[str, Any]) -> pa.Table:
    """Join the parts into `folder/<name>.parquet`, in the order of `ids`, and mark `folder` complete; the table.

    Raises `JobError` if an id has no row.
    """
    rows = read_parts(folder, schema)
    place = {id_: index for index, id_ in enumerate(rows["id"].to_pylist())}
    ids = list(ids)
    missing = [id_ for id_ in ids if id_ not in place]
    if missing:
        raise JobError(f"{folder}: {len(missing)} videos have no row, e.g. {missing[0]}; submit the job again, it goes on where it stopped")
    table = rows.take([place[id_] for id_ in ids])
    storage.write_table(f"{folder}/{name}.parquet", table)
    content = storage.read_bytes(f"{folder}/{name}.parquet")
    part = {"bytes": len(content), "sha256": artifacts.bytes_sha256(content)}
    artifacts.mark_complete(folder, fingerprint, {f"{name}.parquet": part}, lineage)
    attempts.forget(folder)
    return table


def read_finished(folder: str, name: str, schema: pa.Schema) -> pa.Table:
    """The joined table of a complete folder; raises `ArtifactError` if it is not complete, altered or of another schema."""
    marker = artifacts.read_marker(folder)
    uri = f"{folder}/{name}.parquet"
    if artifacts.bytes_sha256(storage.read_bytes(uri)) != marker["parts"][f"{name}.parquet"]["sha256"]:
        raise ArtifactError(f"{uri}: its bytes have changed since it was written; delete {folder} and submit the job again")
    table = storage.read_table(uri)
    check_schema(table.schema, schema, uri)
    return table
