"""Changes that people make to rationales: what they come to, in whatever order they arrive, and that nothing else changes."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniature.base import load_task
from rbft import artifacts, rows
from rbft.errors import ArtifactError, DataError
from rbft.rationales.review import Change, apply_changes, moment, read_changes, record_changes
from rbft.rationales.table import rationales_from_table, rationales_table
from rbft.records import Rationale, rationale_schema

TASK = load_task()
TEXT = "Subjects: a {}.\nAttributes: it looks red.\nActions: it climbs.\nScenes: the porch."
GENERATED = [
    Rationale(id_, 0, text, TASK.parse_sections(text), num_tokens=80, finish_reason="length", provenance={"model": "m"})
    for id_, text in ((id_, TEXT.format(id_)) for id_ in ("a", "b", "c"))
]
BAD = Rationale("bad", 0, error_code="video_decode", error_message="cut short")


def at(second: int) -> str:
    return f"2026-01-01T00:00:{second:02d}.000000+00:00"


def change(id_: str, action: str, second: int = 0, text: str = "", by: str = "ada", note: str = "", sample: int = 0) -> Change:
    return Change(at(second), by, id_, sample, action, text, note)  # type: ignore[arg-type]  # wrong ones are tested too


def write_folder(folder: Path) -> str:
    """A complete folder of rationales, the last of them an error row."""
    found = [*GENERATED, BAD]
    rows.write_part(str(folder), rationales_table(found))
    rows.finish(str(folder), "rationales", rationale_schema(), [row.id for row in found], "f", {})
    return str(folder)


@st.composite
def changes_of_two(draw: st.DrawFn) -> list[Change]:
    actions = st.one_of(
        st.just(("exclude", "")), st.just(("restore", "")), st.tuples(st.just("edit"), st.sampled_from(["new", "Subjects: x"]))
    )
    made = st.tuples(st.integers(0, 4), st.sampled_from(["ada", "bob"]), st.sampled_from("abc"), actions, st.sampled_from(["", "why"]))
    return [change(id_, action, second, text, by, note) for second, by, id_, (action, text), note in draw(st.lists(made, max_size=12))]


@given(changes_of_two(), st.randoms())
def test_changes_of_two_reviewers_come_to_what_they_come_to_in_order_of_time(changes: list[Change], random: object) -> None:
    state = {row.id: (str(row.text), False) for row in GENERATED}
    for each in sorted(changes):
        generated = TEXT.format(each.id)
        state[each.id] = {"edit": (each.text, False), "exclude": (generated, True), "restore": (generated, False)}[each.action]
    arrived = list(changes)
    random.shuffle(arrived)  # type: ignore[attr-defined]
    reviewed, excluded = apply_changes(GENERATED, arrived, TASK)
    assert {row.id: (str(row.text), row.id in excluded) for row in reviewed} == state
    assert [row.id for row in reviewed] == ["a", "b", "c"]
    assert all(row.sections == TASK.parse_sections(str(row.text)) for row in reviewed)


@given(changes_of_two(), st.data())
@settings(max_examples=30)
def test_what_two_reviewers_record_is_read_again_and_what_was_generated_is_as_it_was(changes: list[Change], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = write_folder(Path(name))
        before = {path.name: path.read_bytes() for path in Path(name).iterdir() if path.is_file()}
        left = list(changes)
        while left:
            size = data.draw(st.integers(1, len(left)))
            record_changes(folder, left[:size])
            left = left[size:]
        assert read_changes(folder) == sorted(changes)
        assert {path.name: path.read_bytes() for path in Path(name).iterdir() if path.is_file()} == before
        assert artifacts.is_complete(folder, "f")
        assert rationales_from_table(rows.read_finished(folder, "rationales", rationale_schema())) == [*GENERATED, BAD]


@given(changes_of_two())
def test_what_is_restored_last_is_exactly_as_it_was_generated(changes: list[Change]) -> None:
    restored = [change(row.id, "restore", 5) for row in GENERATED]
    assert apply_changes([*GENERATED, BAD], changes + restored, TASK) == ([*GENERATED, BAD], set())


def test_an_edited_rationale_has_its_sections_and_says_who_changed_what_and_when() -> None:
    first, second = "Subjects: a cat.\nScenes: the hall.", "Subjects: a dog.\nScenes: the hall."
    changes = [change("a", "edit", 1, first, by="ada", note="a cat"), change("a", "edit", 2, second, by="bob")]
    (edited, other, _), excluded = apply_changes(GENERATED, changes, TASK)
    assert excluded == set() and other == GENERATED[1]
    assert (edited.finish_reason, edited.num_tokens) == ("stop", None)
    assert edited.sections == {"Subjects": "a dog.", "Scenes": "the hall."}
    sha256 = [hashlib.sha256(text.encode()).hexdigest() for text in (str(GENERATED[0].text), first)]
    assert edited.provenance == {
        "model": "m",
        "review": [
            {"action": "edit", "by": "ada", "at": at(1), "note": "a cat", "sha256_before": sha256[0]},
            {"action": "edit", "by": "bob", "at": at(2), "note": "", "sha256_before": sha256[1]},
        ],
    }
    assert rationales_from_table(rationales_table([edited])) == [edited]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a", "edit", 0, " \n"), "empty text; exclude it instead"),
        (("a", "exclude", 0, "some"), "has a text and is no edit"),
        (("a", "delete"), "must be one of exclude, restore, edit"),
        (("a", "exclude", 0, "", " "), "does not say by whom"),
    ],
)
def test_what_is_no_change_is_refused(given: tuple[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        change(*given)


def test_a_time_of_another_form_is_refused_as_it_would_not_sort() -> None:
    with pytest.raises(DataError, match="which is no time as 2026"):
        replace(change("a", "exclude"), at="2026-01-01T01:00:00+01:00")


@pytest.mark.parametrize("stranger", [change("d", "exclude"), change("a", "exclude", sample=1), change("bad", "edit", text="I can see it")])
def test_a_change_of_what_is_not_there_is_refused_and_nothing_of_its_batch_is_written(stranger: Change, tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    with pytest.raises(DataError, match=f"has no text for '{stranger.id}' .sample {stranger.sample}."):
        record_changes(folder, [change("a", "exclude"), stranger])
    assert read_changes(folder) == [] and not (tmp_path / "reviews").exists()
    with pytest.raises(DataError, match="check the id"):
        apply_changes([*GENERATED, BAD], [stranger], TASK)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema_version": 2, "changes": []}', '{"schema_version": 1, "changes": [{"id": "a"}]}']
)
def test_a_file_that_holds_no_changes_is_told_by_its_name(content: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    record_changes(folder, [change("a", "exclude")])
    (tmp_path / "reviews" / "mine.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"reviews/mine\.json"):
        read_changes(folder)


def test_a_file_that_is_still_being_written_does_not_count(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    record_changes(folder, [change("a", "exclude")])
    (tmp_path / "reviews" / "half.json.0a1b.tmp").write_text("{")
    assert read_changes(folder) == [change("a", "exclude")]


def test_rationales_in_several_files_are_all_there_to_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ROWS_PER_FILE", 2)
    folder = write_folder(tmp_path)
    assert len(list(tmp_path.glob("rationales-*.parquet"))) == 2
    record_changes(folder, [change("a", "exclude"), change("c", "exclude")])
    assert [each.id for each in read_changes(folder)] == ["a", "c"]


def test_a_moment_is_never_before_the_change_it_follows() -> None:
    ahead = "2999-12-31T23:59:59.999999+00:00"
    assert moment(after=ahead) == "3000-01-01T00:00:00.000000+00:00"
    assert at(0) < moment(after=at(0)) < ahead and change("a", "exclude").at < moment()
