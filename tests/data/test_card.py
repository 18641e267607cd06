"""The data card: counts of what is annotated and what is imported, lengths after trims, and its Markdown."""

from __future__ import annotations

import json
from dataclasses import replace

from rbft.data.card import NO_CATEGORY, DataCard, Lengths, Share, make_card
from rbft.data.card_text import card_markdown, card_summary
from rbft.data.reading import MISSING, PRIVATE, LeftOut, Reading
from rbft.data.survey import Survey, VideoFacts
from rbft.records import Example
from rbft.task import Task

ROWS = [
    Example("a", "/v/a.mp4", "normal", "train", category="Security, Wildlife", sha256="1"),
    Example("b", "/v/b.mp4", "abnormal", "train", category="Security", end_s=-7.0, sha256="1"),
    Example("c", "/v/c.mp4", "abnormal", "test", sha256="2"),
]
GONE = [
    LeftOut(Example("p|1", "/v/p.mp4", "normal", None, category="Wildlife"), PRIVATE),
    LeftOut(Example("-m", "/v/-m.mp4", "abnormal", "test", category="Wildlife"), MISSING),
]
FACTS = Survey({"a": VideoFacts(10.0, 10, 500), "b": VideoFacts(30.0, 30, 1500)}, {"c": "video_decode: cut short"})


def card_of(task: Task, reading: Reading, survey: Survey | None = None) -> DataCard:
    return make_card(reading, task, name="homes", annotations=["labels.csv"], video_root="/v", survey=survey, unnamed_files=["x.mp4"])


def test_what_is_annotated_and_what_is_imported_are_counted_apart(task: Task) -> None:
    card = card_of(task, Reading(tuple(ROWS), tuple(GONE), ("A note.",)), FACTS)
    assert card.num_videos == Share(5, 3)
    assert card.by_split == {
        "train": {"normal": Share(1, 1), "abnormal": Share(1, 1)},
        "test": {"normal": Share(0, 0), "abnormal": Share(2, 1)},
        "(no split)": {"normal": Share(1, 0), "abnormal": Share(0, 0)},
    }
    assert list(card.by_split) == ["train", "test", "(no split)"]
    # A video with two categories counts in each; those with the most videos stand first.
    assert card.by_category == {
        "Wildlife": {"normal": Share(2, 1), "abnormal": Share(1, 0)},
        "Security": {"normal": Share(1, 1), "abnormal": Share(1, 1)},
        NO_CATEGORY: {"normal": Share(0, 0), "abnormal": Share(1, 1)},
    }
    assert list(card.by_category) == ["Wildlife", "Security", NO_CATEGORY]
    assert card.left_out[MISSING] == [{"id": "-m", "uri": "/v/-m.mp4", "split": "test", "label": "abnormal"}]
    assert card.num_trimmed == {"start_s": 0, "end_s": 1}
    assert card.lengths == {"train": Lengths(2, 40.0, 10.0, 20.0, 30.0, 40, 2000, 1500)}
    assert card.identical_files == (("a", "b"),)
    assert card.unusable == {"c": "video_decode: cut short"}
    assert json.loads(json.dumps(card.to_json()))["baselines"][0]["accuracy"] in (0.0, 1.0)


def test_the_markdown_names_every_id_and_the_summary_the_first(task: Task) -> None:
    many = tuple(LeftOut(Example(f"m{number}", f"/v/m{number}.mp4", "normal", "train"), MISSING) for number in range(20))
    card = card_of(task, Reading(tuple(ROWS), (*GONE, *many), ("A note.",)), FACTS)
    text, summary = card_markdown(replace(card, manifest="out/manifest.parquet")), card_summary(card)
    assert all(f"`m{number}`" in text for number in range(20))
    assert "test: `-m`" in text
    assert "| Wildlife | 1 / 3 | 1 / 2 | 0 / 1 |" in text
    assert "25 videos are annotated, 3 are in the manifest `out/manifest.parquet`." in text
    assert "| train | 2 | 0.01 | 10.0 | 20.0 | 30.0 | 40 | 2,000 | 1,500 |" in text
    for said in ("### Private: 1", "### Missing: 21", "- `a`, `b`", "- `c`: video_decode: cut short", "- `x.mp4`", "- A note."):
        assert said in text
    assert "3 of 25 annotated videos imported" in summary
    assert "21 left out, no file is there: -m, m0, m1, m2, m3 and 16 more" in summary


def test_sections_without_content_are_left_out(task: Task) -> None:
    card = make_card(Reading((replace(ROWS[2], category=None),)), task, name="homes", annotations=["labels.csv"])
    text = card_markdown(card)
    for heading in ("Categories", "Lengths", "Left out", "Identical files", "cannot be used", "Files that no row names", "How it was read"):
        assert heading not in text
    assert "the videos were not opened" in text
    assert "nothing" not in card_summary(card)
