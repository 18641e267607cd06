"""Rows of annotation files (CSV, TSV, JSONL, Parquet), each with the line it begins on. Knows nothing of what the columns mean."""

from __future__ import annotations

import ast
import csv
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbft.errors import ManifestError


@dataclass(frozen=True)
class Row:
    """One row of an annotation file: its cells by column name, and where it stands."""

    path: Path
    line: int
    """Counted from 1, the header included; for Parquet the number of the row, from 1."""
    cells: dict[str, Any]

    @property
    def where(self) -> str:
        """ "annotations.csv line 7", to begin a message with."""
        return f"{self.path} {'row' if self.path.suffix.lower() == '.parquet' else 'line'} {self.line}"

    def text(self, column: str) -> str | None:
        """The cell without space around it; None where it is absent, null, NaN or blank. Lists are joined with ", "."""
        try:
            return text_of(self.cells.get(column))
        except ManifestError as error:
            raise ManifestError(f"{self.where}: column {column!r} {error}") from error

    def required(self, column: str) -> str:
        """As `text`, but `ManifestError` where there is nothing."""
        value = self.text(column)
        if value is None:
            raise ManifestError(f"{self.where}: column {column!r} is empty; fill it in or remove the row")
        return value

    def number(self, column: str) -> float | None:
        """The cell as a finite number, None where it is blank; `ManifestError` where it is something else."""
        value = self.text(column)
        if value is None:
            return None
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ManifestError(f"{self.where}: column {column!r} holds {value!r}, not a number; write seconds, e.g. 12.5")
        return number


def text_of(value: Any) -> str | None:
    """`value` as tidy text; None for null, NaN, blank text and an empty list. `ManifestError` for a mapping."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (list, tuple)):
        return ", ".join(part for part in map(text_of, value) if part) or None
    if isinstance(value, dict):
        raise ManifestError("holds a mapping, not text; flatten it first")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers with a gap arrives as floats: 12.0 was written as 12
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    # JSON may escape half of a surrogate pair, which no UTF-8 file can hold.
    tidy = str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()
    return tidy or None


def literal_list(text: str) -> list[str]:
    """The items of a list written as Python or JSON literal ("['a', 'b']"); `[text]` where it is none."""
    if text.startswith("[") and text.endswith("]"):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [text]
        if isinstance(value, list) and all(isinstance(item, (str, int, float)) for item in value):
            return [str(item).strip() for item in value]
    return [text]


def columns_of(path: Path) -> list[str]:
    """The columns of the annotation file at `path`, in order; for JSONL the keys of all its rows."""
    if path.suffix.lower() in (".csv", ".tsv"):
        with _opened(path) as file:
            return _header(path, csv.reader(file, delimiter=_delimiter(path), strict=True))
    if path.suffix.lower() == ".parquet":
        return list(_parquet_table(path).column_names)
    return list(dict.fromkeys(column for row in read_rows(path) for column in row.cells))


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of the file at `path`, whose format is told by its extension. `ManifestError` with the line for what cannot be read."""
    readers = {".csv": _read_separated, ".tsv": _read_separated, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".parquet": _read_parquet}
    try:
        reader = readers[path.suffix.lower()]
    except KeyError:
        raise ManifestError(f"{path}: annotations are read from {', '.join(readers)}; save them as one of these") from None
    return reader(path)


def _opened(path: Path) -> Any:
    try:
        # utf-8-sig takes off the byte-order mark that spreadsheets write; newline="" leaves CRLF inside quotes to csv.
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be opened ({error.strerror}); check the path") from error


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _header(path: Path, reader: Any) -> list[str]:
    try:
        names = [name.strip() for name in next(reader, [])]
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if not any(names):
        raise ManifestError(f"{path}: has no header line; its first line must name the columns")
    if twice:
        raise ManifestError(f"{path} line 1: column(s) {', '.join(map(repr, twice))} stand twice; rename one of each")
    return names


def _read_separated(path: Path) -> Iterator[Row]:
    with _opened(path) as file:
        # strict: an unclosed quote is an error here, not a cell that swallows the rest of the file.
        reader = csv.reader(file, delimiter=_delimiter(path), strict=True)
        names = _header(path, reader)
        line = reader.line_num + 1
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise ManifestError(f"{path} line {line}: {error}; a cell that holds quotes or separators must be quoted whole") from error
            except UnicodeDecodeError as error:
                raise ManifestError(f"{path} line {line} or later: is not UTF-8 text; save it as UTF-8") from error
            if cells is None:
                return
            if any(cell.strip() for cell in cells):
                if any(cell.strip() for cell in cells[len(names) :]):
                    raise ManifestError(
                        f"{path} line {line}: {len(cells)} cells under {len(names)} columns; quote a cell that holds the separator"
                    )
                yield Row(path, line, dict(zip(names, cells, strict=False)))
            line = reader.line_num + 1


def _read_jsonl(path: Path) -> Iterator[Row]:
    with _opened(path) as file:
        try:
            for line, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                try:
                    cells = json.loads(text)
                except json.JSONDecodeError as error:
                    raise ManifestError(f"{path} line {line}: is not JSON ({error.msg}); write one object a line") from error
                if not isinstance(cells, dict):
                    raise ManifestError(f"{path} line {line}: is a {type(cells).__name__}, not an object; write one object a line")
                yield Row(path, line, cells)
        except UnicodeDecodeError as error:
            raise ManifestError(f"{path}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error


def _parquet_table(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except FileNotFoundError as error:
        raise ManifestError(f"{path}: cannot be opened (no such file); check the path") from error
    except (OSError, pa.ArrowException) as error:
        raise ManifestError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())}); export it again") from error


def _read_parquet(path: Path) -> Iterator[Row]:
    for number, cells in enumerate(_parquet_table(path).to_pylist(), start=1):
        yield Row(path, number, cells)
