"""One reviewer's view of a run: order, filters, what others do meanwhile, and undoing."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbft import rows, storage
from rbft.config import RunConfig
from rbft.errors import ArtifactError, DataError, RequestError
from rbft.layout import RunLayout
from rbft.rationales.quality import judge, write_quality
from rbft.rationales.review import Change, record_changes
from rbft.rationales.table import rationales_from_table
from rbft.records import rationale_schema
from rbft.review.reviewer import Item, Reviewer


def ids(items: list[Item]) -> list[str]:
    return [item.example.id for item in items]


def test_the_worst_comes_first_and_what_has_no_text_is_only_counted(reviewer: Reviewer) -> None:
    assert ids(reviewer.find()) == ["sorry", "gone", "good/1", "broken"] and reviewer.num_errors == 1
    assert ids(reviewer.find(worst_first=False)) == ["good/1", "sorry", "broken", "gone"]


def test_scores_that_lie_beside_the_rationales_are_those_that_are_made_anew(config: RunConfig, reviewer: Reviewer) -> None:
    found = rationales_from_table(rows.read_finished(reviewer.folder, "rationales", rationale_schema()))
    labels = {item.example.id: item.example.label for item in reviewer.items}
    write_quality(reviewer.folder, judge(found, reviewer.task, labels), reviewer.task, "quality")
    again = Reviewer(config, "ada")
    for mine, theirs in zip(again.items, reviewer.items, strict=True):
        assert mine.current.failed == theirs.current.failed
        assert mine.current.scores == pytest.approx(theirs.current.scores)


def test_filters_narrow_the_list(reviewer: Reviewer) -> None:
    reviewer.change("broken", "exclude")
    assert ids(reviewer.find(status="excluded")) == ids(reviewer.find(status="reviewed")) == ["broken"]
    assert ids(reviewer.find(status="untouched")) == ["sorry", "gone", "good/1"]
    assert ids(reviewer.find(gate="not_cut_off")) == ids(reviewer.find(gate="any")) == ["sorry", "gone"]
    assert ids(reviewer.find(label="abnormal")) == ["sorry", "broken"] and ids(reviewer.find(label="")) == ["gone"]
    assert ids(reviewer.find(text="ROBOT")) == ["broken"] and ids(reviewer.find(text="good/")) == ["good/1"]
    assert reviewer.find(text="robot", label="normal") == []


def test_an_edit_is_judged_anew_and_does_not_move_in_the_list(reviewer: Reviewer) -> None:
    text = "Subjects: a cat.\nAttributes: it looks white.\nActions: it sleeps.\nScenes: the sofa."
    item = reviewer.change("sorry", "edit", text, "there is a cat")
    assert (
        item.text == text and item.status == "edited" and "no_refusal" not in item.current.failed and "no_refusal" in item.generated.failed
    )
    assert ids(reviewer.find()) == ["sorry", "gone", "good/1", "broken"]


def test_undo_goes_back_one_change_and_forth_again(reviewer: Reviewer) -> None:
    generated = reviewer.item("sorry").generated.rationale
    assert reviewer.undo("sorry").status == "untouched" and reviewer.undo("sorry").history == []
    reviewer.change("sorry", "edit", "a cat")
    reviewer.change("sorry", "exclude")
    undone = reviewer.undo("sorry")
    assert (undone.status, undone.text) == ("edited", "a cat")
    assert reviewer.undo("sorry").status == "excluded"
    reviewer.change("good/1", "exclude")
    assert reviewer.undo("good/1").current == reviewer.item("good/1").generated
    assert reviewer.change("sorry", "restore").current.rationale == generated
    assert reviewer.counts() == {"untouched": 2, "kept": 2, "edited": 0, "excluded": 0}


def test_two_reviewers_at_a_time_see_each_others_changes_and_who_opens_later_sees_all(config: RunConfig) -> None:
    ada, bob = Reviewer(config, "ada"), Reviewer(config, "bob")
    ada.change("sorry", "exclude", note="it declines")
    bob.change("sorry", "edit", "a cat")
    bob.change("gone", "exclude")
    ada.refresh()
    for reviewer in (ada, bob, Reviewer(config, "eve")):
        assert [(change.by, change.action) for change in reviewer.item("sorry").history] == [("ada", "exclude"), ("bob", "edit")]
        assert reviewer.counts() == {"untouched": 2, "kept": 0, "edited": 1, "excluded": 1}


def test_a_change_counts_although_the_one_before_was_made_by_a_clock_that_runs_ahead(reviewer: Reviewer) -> None:
    record_changes(reviewer.folder, [Change("2999-01-01T00:00:00.000000+00:00", "bob", "sorry", 0, "exclude")])
    assert reviewer.change("sorry", "restore").status == "kept"


def test_what_cannot_be_changed_is_refused(reviewer: Reviewer) -> None:
    with pytest.raises(RequestError, match="no rationale of 'error'"):
        reviewer.change("error", "exclude")
    with pytest.raises(DataError, match="empty text"):
        reviewer.change("sorry", "edit", "\n")
    assert reviewer.counts()["untouched"] == 4 and not storage.list_files(f"{reviewer.folder}/reviews")


def test_a_run_without_rationales_is_told_what_writes_them(config: RunConfig) -> None:
    Path(RunLayout(config.run_dir).run_json).unlink()
    with pytest.raises(ArtifactError, match=r"run\.json: names no rationales; `rbft generate` writes them"):
        Reviewer(config, "ada")


def test_rationales_that_were_altered_are_not_reviewed(config: RunConfig, reviewer: Reviewer) -> None:
    with Path(reviewer.folder, "rationales-00000.parquet").open("ab") as file:
        file.write(b" ")
    with pytest.raises(ArtifactError, match="its bytes have changed"):
        Reviewer(config, "ada")
