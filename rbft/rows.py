"""Rows that grow part by part and end as a few files: how generation and evaluation keep what they have done.

    <folder>/parts/<hash of its ids>.parquet    while it grows: one file a block of videos
    <folder>/<name>-00000.parquet, …            at its end: one row an id, in the order of the ids
    <folder>/COMPLETE.json                      names those with size and hash; from then on they are what exists

A part appears whole or not at all, so what is on disk is exactly what is done, and a block that is done again after a failure replaces
its own file: `done_ids` is the whole resume logic. Where two parts hold an id, one without an error counts, else the first by name.
`finish` joins the parts, marks the folder complete and deletes them. A process that dies in between leaves parts without a marker, which
the next one joins again, or a marker with parts beside it, which nobody reads.

Memory: an id and a few bytes for each row, and the content of one file at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rbft import artifacts, attempts, storage
from rbft.errors import ArtifactError, JobError
from rbft.records import check_schema

ROWS_PER_FILE = 25_000
"""Of the joined files: some 50 MB of rationales."""
ROWS_PER_GROUP = 5_000
"""Rows gathered at a time."""
_NUM_THREADS = 8
"""Parts read at a time, mostly for stores that are far away."""


def write_part(folder: str, table: pa.Table) -> str:
    """Write one block's rows to `folder`; the URI of the part."""
    uri = _part_uri(folder, table["id"].to_pylist())
    storage.write_table(uri, table)
    return uri


def has_part(folder: str, ids: Iterable[str]) -> bool:
    """Whether the rows of this very block are written."""
    return storage.exists(_part_uri(folder, ids))


def read_parts(folder: str, schema: pa.Schema) -> pa.Table:
    """All rows of `folder` as far as it is done, one an id."""
    index = _index(_files(folder), schema)
    return _gather(index, index.places(pc.unique(index.ids)).to_numpy(), schema)


def done_ids(folder: str, schema: pa.Schema, *, errors_too: bool = True) -> set[str]:
    """The ids that have a row already; without `errors_too` only those with one that is no error."""
    index = _index(_files(folder), schema)
    return set((index.ids if errors_too else index.ids_that_worked).to_pylist())


def outcomes(folder: str, schema: pa.Schema) -> dict[str, str | None]:
    """The ids that have a row -> the error code of the row that counts, None if it is no error."""
    only = pa.schema([schema.field(name) for name in ("id", "error_code")], schema.metadata)
    codes: dict[str, str | None] = {}
    for uri in _files(folder):
        for table in _read_groups(uri, only):
            for id_, code in zip(table["id"].to_pylist(), table["error_code"].to_pylist(), strict=True):
                codes[id_] = None if codes.get(id_, code) is None else code
    return codes


def reopen(folder: str, schema: pa.Schema) -> int:
    """Make parts again of a complete `folder` that has error rows, so that those can be done again; how many there are.

    They count as not done from now on (`done_ids(..., errors_too=False)`); if they fail again, their rows are still there.
    """
    index = _index(_files(folder), schema)
    num_errors = pc.count_distinct(index.ids).as_py() - pc.count_distinct(index.ids_that_worked).as_py()
    if num_errors and artifacts.is_complete(folder):
        marker = artifacts.read_marker(folder)
        # Copied, not moved: until the marker is gone, the files it names must be there; and then the parts must be.
        for name in marker["parts"]:
            storage.write_bytes(f"{folder}/parts/{name}", _verified(folder, name, marker))
        storage.delete_file(f"{folder}/{artifacts.MARKER}")
        for name in marker["parts"]:
            storage.delete_file(f"{folder}/{name}")
    return int(num_errors)


def finish(folder: str, name: str, schema: pa.Schema, ids: Iterable[str], fingerprint: str, lineage: dict[str, Any]) -> None:
    """Join the parts of `folder` into `<name>-00000.parquet` and on, in the order of `ids`; mark it complete; delete the parts.

    Raises `JobError` if an id has no row.
    """
    index = _index(_parts(folder), schema)
    wanted = pa.array(ids, pa.string())
    places = index.places(wanted)
    missing = wanted.filter(places.is_null())
    if missing:
        raise JobError(f"{folder}: {len(missing)} videos have no row, e.g. {missing[0]}; submit the job again, it goes on where it stopped")
    files = {}
    for number, start in enumerate(range(0, max(1, len(places)), ROWS_PER_FILE)):
        content = _joined(index, places[start : start + ROWS_PER_FILE].to_numpy(), schema)
        file = f"{name}-{number:05d}.parquet"
        storage.write_bytes(f"{folder}/{file}", content)
        files[file] = {"bytes": len(content), "sha256": artifacts.bytes_sha256(content)}
    artifacts.mark_complete(folder, fingerprint, files, lineage)
    with contextlib.suppress(ArtifactError):  # Somebody still writes there: an actor that outlived its driver. Nobody reads it.
        storage.delete_folder(f"{folder}/parts")
    attempts.forget(folder)


def read_finished(folder: str, name: str, schema: pa.Schema) -> pa.Table:
    """The rows of a complete folder; raises `ArtifactError` if it is not complete, altered or of another schema."""
    return pa.concat_tables([schema.empty_table(), *iterate_finished(folder, name, schema)])


def iterate_finished(folder: str, name: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """`read_finished` file by file, for who cannot hold all of them, and only the `columns` asked for."""
    marker = artifacts.read_marker(folder)
    for file in (file for file in marker["parts"] if file.startswith(name)):
        table = pq.read_table(pa.BufferReader(_verified(folder, file, marker)))
        check_schema(table.schema, schema, f"{folder}/{file}")
        yield table.select(schema.names).cast(schema).select(columns or schema.names)


@dataclass(frozen=True)
class _Index:
    """Where each row is: in which row group of which file, and where there."""

    groups: list[tuple[str, int]]
    """URI and number of each row group."""
    ids: pa.Array
    is_error: np.ndarray
    group: np.ndarray
    """Number in `groups`, one a row."""
    row: np.ndarray
    """Number in its group, one a row."""

    @property
    def ids_that_worked(self) -> pa.Array:
        return self.ids.filter(pa.array(~self.is_error))

    def places(self, wanted: pa.Array) -> pa.Array:
        """For each of the `wanted` ids the number of the row that counts; null where there is none."""
        best_first = np.argsort(self.is_error, kind="stable")
        # `index_in` finds the first of equal ids.
        found = pc.index_in(wanted, value_set=self.ids.take(pa.array(best_first)))
        return pa.array(best_first).take(found)


def _index(uris: Iterable[str], schema: pa.Schema) -> _Index:
    """Where the rows of these files are; reads their ids and error codes only."""
    only = pa.schema([schema.field(name) for name in ("id", "error_code")], schema.metadata)

    def read(uri: str) -> list[tuple[str, int, pa.ChunkedArray, np.ndarray]]:
        tables = _read_groups(uri, only)
        return [(uri, number, table["id"], table["error_code"].is_valid().to_numpy()) for number, table in enumerate(tables)]

    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        found = [group for groups in threads.map(read, uris) for group in groups]
    sizes = [len(ids) for _, _, ids, _ in found]
    return _Index(
        groups=[(uri, number) for uri, number, _, _ in found],
        ids=pa.chunked_array([chunk for _, _, ids, _ in found for chunk in ids.chunks], pa.string()).combine_chunks(),
        is_error=np.concatenate([np.empty(0, bool), *(is_error for _, _, _, is_error in found)]),
        group=np.repeat(np.arange(len(sizes)), sizes),
        row=np.concatenate([np.empty(0, int), *(np.arange(size) for size in sizes)]),
    )


def _gather(index: _Index, places: np.ndarray, schema: pa.Schema) -> pa.Table:
    """The rows of `index` at `places`, in their order."""
    by_group = np.argsort(index.group[places], kind="stable")
    groups, starts = np.unique(index.group[places][by_group], return_index=True)
    of_groups = np.split(index.row[places][by_group], starts[1:])

    def read(group: int, chosen: np.ndarray) -> pa.Table:
        uri, number = index.groups[group]
        (table,) = _read_groups(uri, schema, [number])
        return table.take(chosen)

    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        tables = list(threads.map(read, groups, of_groups))
    back = np.empty(len(places), int)
    back[by_group] = np.arange(len(places))
    return pa.concat_tables([schema.empty_table(), *tables]).take(back)


def _joined(index: _Index, places: np.ndarray, schema: pa.Schema) -> pa.Buffer:
    """The Parquet file of the rows of `index` at `places`."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema) as writer:
        for start in range(0, max(1, len(places)), ROWS_PER_GROUP):
            writer.write_table(_gather(index, places[start : start + ROWS_PER_GROUP], schema))
    return sink.getvalue()


def _read_groups(uri: str, schema: pa.Schema, numbers: Sequence[int] | None = None) -> list[pa.Table]:
    """Row groups of the file `uri`, with the columns of `schema`."""
    tables = storage.read_row_groups(uri, schema.names, numbers)
    for table in tables:
        check_schema(table.schema, schema, uri)
    return [table.select(schema.names).cast(schema) for table in tables]


def _verified(folder: str, name: str, marker: dict[str, Any]) -> bytes:
    """The bytes of a file that the marker names."""
    content = storage.read_bytes(f"{folder}/{name}")
    if artifacts.bytes_sha256(content) != marker["parts"][name]["sha256"]:
        raise ArtifactError(f"{folder}/{name}: its bytes have changed since it was written; delete {folder} and submit the job again")
    return content


def _files(folder: str) -> list[str]:
    """What holds the rows of `folder`: the files its marker names, or its parts."""
    if artifacts.is_complete(folder):
        return [f"{folder}/{name}" for name in artifacts.read_marker(folder)["parts"]]
    return _parts(folder)


def _parts(folder: str) -> list[str]:
    scheme = folder.partition("://")[0] + "://" if "://" in folder else ""
    return [f"{scheme}{info.path}" for info in storage.list_files(f"{folder}/parts") if info.path.endswith(".parquet")]


def _part_uri(folder: str, ids: Iterable[str]) -> str:
    return f"{folder}/parts/{artifacts.fingerprint(sorted(ids))}.parquet"
