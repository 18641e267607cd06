"""What a quality report says, and that it can be read back."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from miniature.base import load_task
from rbft.rationales.gates import GATES
from rbft.rationales.quality import judge, quality, write_quality
from rbft.records import Rationale

TASK = load_task()
GOOD = "Subjects: there is a {}.\nAttributes: it looks {}.\nActions: it climbs {}.\nScenes: this is the {}."
LABELS: dict[str, str | None] = {"a": "normal", "b": "abnormal", "c": "abnormal", "d": "normal", "e": None}


@pytest.fixture
def rationales() -> list[Rationale]:
    return [
        Rationale("a", 0, GOOD.format("dog", "red", "up", "porch"), finish_reason="stop"),
        Rationale("b", 0, GOOD.format("robot", "blue", "down", "kitchen") + " No signs of any concern.", finish_reason="stop"),
        Rationale("c", 0, GOOD.format("car", "green", "away", "<b>hall</b>"), finish_reason="length"),
        Rationale("d", 0, error_code="video_decode", error_message="cut short"),
        Rationale("e", 0, GOOD.format("dog", "red", "up", "porch"), finish_reason="stop"),
    ]


def test_each_rationale_is_judged_by_itself_its_label_and_the_others(rationales: list[Rationale]) -> None:
    found = {verdict.rationale.id: verdict.failed for verdict in judge(rationales, TASK, LABELS)}
    assert found == {"a": (), "b": ("agrees_with_label",), "c": ("not_cut_off",), "d": ("error",), "e": ("no_near_duplicate",)}


def test_of_some_gates_only_those_are_told(rationales: list[Rationale]) -> None:
    found = {verdict.rationale.id: verdict.failed for verdict in judge(rationales, TASK, LABELS, ["not_cut_off"])}
    assert found == {"a": (), "b": (), "c": ("not_cut_off",), "d": ("error",), "e": ()}


def test_shares_are_over_all_and_by_class_and_error_rows_pass_nothing(rationales: list[Rationale]) -> None:
    found = quality(judge(rationales, TASK, LABELS), TASK.labels)
    assert (found["num_rationales"], found["num_errors"]) == (5, 1)
    assert found["pass_rates"]["all"] == 0.2 and found["pass_rates"]["no_refusal"] == 0.8
    assert found["pass_rates_by_class"]["abnormal"] == {
        **dict.fromkeys(GATES, 1.0),
        "not_cut_off": 0.5,
        "agrees_with_label": 0.5,
        "all": 0.0,
    }
    assert found["worst"]["not_cut_off"] == ["c"] and found["worst"]["has_sections"] == []
    assert found["words"]["0.5"] in {17, 18} and json.loads(json.dumps(found)) == found


def test_the_files_hold_a_row_a_rationale_a_column_a_gate_and_escaped_text(rationales: list[Rationale], tmp_path: Path) -> None:
    write_quality(str(tmp_path), judge(rationales, TASK, LABELS), TASK, "a <run>")
    rows = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert [row["id"] for row in rows] == list("abcde") and set(GATES) < set(rows[0])
    assert rows[3]["failed"] == ["error"] and rows[3]["not_empty"] is None and rows[4]["no_near_duplicate"] == 1.0
    page = (tmp_path / "quality.html").read_text()
    assert "&lt;b&gt;hall" in page and "<b>hall" not in page and "a &lt;run&gt;" in page and "<script" not in page


def test_nothing_written_is_no_error(tmp_path: Path) -> None:
    found = write_quality(str(tmp_path), [], TASK, "empty")
    assert found["pass_rates"] == {} and "0 rationales" in (tmp_path / "quality.html").read_text()
