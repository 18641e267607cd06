"""A review in a spreadsheet: out and in again, what becomes a change, and what is refused on which line."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rbft import storage
from rbft.config import RunConfig
from rbft.errors import ManifestError
from rbft.review.reviewer import Reviewer
from rbft.review.sheet import COLUMNS, export_sheet, import_sheet

Rows = dict[str, dict[str, str]]


def read(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def write(path: Path, sheet: Rows, line_end: str = "\n") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator=line_end)
        writer.writeheader()
        writer.writerows(sheet.values())


@pytest.fixture
def path(tmp_path: Path, reviewer: Reviewer) -> Path:
    path = tmp_path / "review.csv"
    assert export_sheet(reviewer, path) == 4
    return path


def test_what_is_exported_has_all_that_was_written_worst_first(path: Path) -> None:
    sheet = read(path)
    assert list(sheet) == ["sorry", "gone", "good/1", "broken"] and tuple(sheet["gone"]) == COLUMNS
    assert sheet["sorry"] == {
        "id": "sorry",
        "label": "abnormal",
        "text": 'I am sorry, "I cannot" see, or say,\nwhat is normal.',
        "excluded": "",
        "note": "",
    }


def test_what_differs_becomes_a_change_by_the_one_who_imports(path: Path, config: RunConfig) -> None:
    sheet = read(path)
    sheet["sorry"] |= {"text": "a cat,\nasleep", "note": "there is a cat"}
    sheet["gone"] |= {"excluded": "Yes", "text": "does not matter"}
    sheet["good/1"]["note"] = "well seen"
    write(path, sheet)
    bob = Reviewer(config, "bob")
    assert import_sheet(bob, path) == 3
    last = {item.example.id: item.history[-1] for item in bob.items if item.history}
    assert {id_: (change.by, change.action, change.text, change.note) for id_, change in last.items()} == {
        "sorry": ("bob", "edit", "a cat,\nasleep", "there is a cat"),
        "gone": ("bob", "exclude", "", ""),
        "good/1": ("bob", "restore", "", "well seen"),
    }
    assert import_sheet(bob, path) == 0
    export_sheet(bob, path)
    assert import_sheet(bob, path) == 0
    sheet = read(path)
    assert (sheet["gone"]["excluded"], sheet["sorry"]["text"], sheet["sorry"]["note"]) == ("yes", "a cat,\nasleep", "there is a cat")
    sheet["gone"]["excluded"] = "no"
    sheet["sorry"]["text"] = str(bob.item("sorry").generated.rationale.text)
    write(path, {id_: sheet[id_] for id_ in ("gone", "sorry")})
    assert import_sheet(bob, path) == 2
    assert bob.counts() == {"untouched": 1, "kept": 3, "edited": 0, "excluded": 0}


def test_what_a_spreadsheet_does_to_line_ends_is_no_change(path: Path, reviewer: Reviewer) -> None:
    sheet = read(path)
    for row in sheet.values():
        row["text"] = row["text"].replace("\n", "\r\n") + " "
    write(path, sheet, line_end="\r\n")
    assert import_sheet(reviewer, path) == 0


@given(text=st.text(max_size=60).filter(str.strip), note=st.text(max_size=20))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_and_note_survive_the_way_out_and_in(text: str, note: str, reviewer: Reviewer, tmp_path: Path) -> None:
    reviewer.change("sorry", "edit", text, note)
    export_sheet(reviewer, tmp_path / "review.csv")
    assert import_sheet(reviewer, tmp_path / "review.csv") == 0


def rename(sheet: Rows, path: Path) -> None:
    sheet["gone"]["id"] = "none"
    write(path, sheet)


def repeat(sheet: Rows, path: Path) -> None:
    write(path, {**sheet, "again": sheet["sorry"]})


def relabel(sheet: Rows, path: Path) -> None:
    sheet["gone"]["label"] = "normal"
    write(path, sheet)


def mumble(sheet: Rows, path: Path) -> None:
    sheet["gone"]["excluded"] = "perhaps"
    write(path, sheet)


def empty(sheet: Rows, path: Path) -> None:
    sheet["gone"]["text"] = ""
    write(path, sheet)


def drop_column(sheet: Rows, path: Path) -> None:
    path.write_text("id,text,excluded,note\nsorry,a cat,,\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (rename, r"review\.csv line 4: there is no rationale of 'none'"),  # line 2 is a text of two lines
        (repeat, r"review\.csv line 16: 'sorry' stands on line 2 already"),
        (relabel, r"review\.csv line 4: the label is None, not 'normal'"),
        (mumble, r"review\.csv line 4: column 'excluded' holds 'perhaps'; write yes"),
        (empty, r"review\.csv line 4: column 'text' is empty; write yes under 'excluded'"),
        (drop_column, r"review\.csv line 1: the columns must be id, label, text, excluded, note, not id, text"),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_nothing_is_recorded(
    spoil: Callable[[Rows, Path], None], message: str, path: Path, reviewer: Reviewer
) -> None:
    sheet = read(path)
    sheet["sorry"]["text"] = "first line\nsecond line"
    spoil(sheet, path)
    with pytest.raises(ManifestError, match=message):
        import_sheet(reviewer, path)
    assert not storage.list_files(f"{reviewer.folder}/reviews")
