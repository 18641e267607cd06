"""A review without a browser: the rationales as CSV, and back. Columns: id, label, text, excluded (yes or nothing), note."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from rbft import storage
from rbft.data.tables import Row, columns_of, read_rows
from rbft.errors import ManifestError
from rbft.rationales.review import Action
from rbft.review.reviewer import Item, Reviewer

COLUMNS = ("id", "label", "text", "excluded", "note")
_YES = "yes"


def export_sheet(reviewer: Reviewer, path: Path) -> int:
    """Write all rationales as they are now to the CSV file `path`, worst first; how many."""
    items = reviewer.find()
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for item in items:
        _, text, note = _state(item)
        excluded = _YES if item.status == "excluded" else ""
        writer.writerow([item.example.id, item.example.label or "", text or _tidy(str(item.generated.rationale.text)), excluded, note])
    # With a byte-order mark, without which spreadsheets take UTF-8 for something else.
    storage.write_bytes(str(path), buffer.getvalue().encode("utf-8-sig"))
    return len(items)


def import_sheet(reviewer: Reviewer, path: Path) -> int:
    """Make a change of every row of `path` that differs from what the review says now; how many. All of them are written, or none.

    Rows may be missing; of an excluded row the text does not matter. Raises `ManifestError` with the file and line for anything else
    that `export_sheet` did not write: unknown, missing or repeated ids, other columns, another label, an empty text.
    """
    if set(columns_of(path)) != set(COLUMNS):
        raise ManifestError(f"{path} line 1: the columns must be {', '.join(COLUMNS)}, not {', '.join(columns_of(path))}")
    items = {item.example.id: item for item in reviewer.items}
    lines: dict[str, int] = {}
    wanted: list[tuple[str, Action, str, str]] = []
    for row in read_rows(path):
        id_ = row.required("id")
        if id_ not in items:
            raise ManifestError(f"{row.where}: there is no rationale of {id_!r} to review; take the line out")
        if id_ in lines:
            raise ManifestError(f"{row.where}: {id_!r} stands on line {lines[id_]} already; keep one of them")
        lines[id_] = row.line
        item = items[id_]
        state = _wanted(row, item)
        if state != _state(item):
            wanted.append((id_, *state))
    reviewer.change_all(wanted)
    return len(wanted)


def _state(item: Item) -> tuple[Action, str, str]:
    """What the review says of `item` now: action, new text, note."""
    if not item.history:
        return "restore", "", ""
    last = item.history[-1]
    return last.action, _tidy(last.text), _tidy(last.note)


def _wanted(row: Row, item: Item) -> tuple[Action, str, str]:
    if (label := row.text("label") or "") != (item.example.label or ""):
        raise ManifestError(f"{row.where}: the label is {item.example.label!r}, not {label!r}; labels are corrected in the annotations")
    excluded = (row.text("excluded") or "").lower()
    if excluded not in ("", "no", _YES):
        raise ManifestError(f"{row.where}: column 'excluded' holds {excluded!r}; write yes, or leave it empty")
    note = _tidy(row.text("note") or "")
    if excluded == _YES:
        return "exclude", "", note
    if row.text("text") is None:
        raise ManifestError(f"{row.where}: column 'text' is empty; write yes under 'excluded' to leave the rationale out")
    text = _tidy(row.required("text"))
    return ("restore", "", note) if text == _tidy(str(item.generated.rationale.text)) else ("edit", text, note)


def _tidy(text: str) -> str:
    """Without what a spreadsheet may change by itself: line ends, and space around."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()
