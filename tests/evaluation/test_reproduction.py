"""The paper's tables with our rows: the authors' stand beside the right ones, and what is shown of them is what follows from them."""

from __future__ import annotations

import pytest

from rbft.config import MaskingConfig
from rbft.evaluation.failures import analyse_failures
from rbft.evaluation.metrics import metrics_from_confusion
from rbft.evaluation.paper import PAPER_ROWS, SMARTHOME_LABELS
from rbft.evaluation.reproduction import BACKBONES, TABLES, answers_note, make_table, masks_note, table_json, table_text
from rbft.evaluation.reproduction_page import Made, render_table
from rbft.records import Prediction
from rbft.systems import parse_system

OURS = metrics_from_confusion([[30, 10], [5, 55]], SMARTHOME_LABELS)
QWEN25 = BACKBONES["qwen2_5_vl"]


@pytest.mark.parametrize("number", TABLES)
def test_every_system_of_a_table_is_one_and_every_method_is_a_row_of_the_paper(number: int) -> None:
    spec = TABLES[number]
    assert [parse_system(name).name for name in spec.systems] == list(spec.systems)
    methods = {row.method for row in PAPER_ROWS if row.table == number}
    assert {method for method in spec.methods.values() if method} <= methods


def test_the_authors_row_stands_below_ours_and_the_others_at_the_end() -> None:
    spec = TABLES[1]
    table = make_table(spec, "a world", SMARTHOME_LABELS, {QWEN25: dict.fromkeys(spec.systems, OURS)}, {"GPT-4o": OURS})
    names = [row.name for row in table.rows]
    assert names[:4] == ["GPT-4o", "paper: GPT-4o", "Zero-shot", f"paper: {QWEN25}, Zero-shot"]
    assert names[4:9] == [
        "Direct-SFT (1 epoch)",
        f"paper: {QWEN25}, Direct-SFT",
        "Direct-SFT (2 epochs)",
        "RB-FT",
        f"paper: {QWEN25}, RB-FT",
    ]
    assert {"paper: UniFormerV2", "paper: Qwen2-VL-7B, RB-FT"} <= set(names[9:])
    assert len(table.rows) == 5 + sum(row.table == 1 for row in PAPER_ROWS), "none twice, none lost"
    assert "a world" in table.title
    assert all(len(row.cells) == len(table.columns) for row in table.rows)


@pytest.mark.parametrize("number", [1, 2])
def test_specialised_models_stand_above_the_authors_rows_of_them(number: int) -> None:
    labels = SMARTHOME_LABELS if number == 1 else ("normal", "hateful", "offensive")
    ours = OURS if number == 1 else metrics_from_confusion([[5, 1, 0], [2, 3, 1], [0, 1, 2]], labels)
    others = {"uniformerv2": ours, "InternVideo2": ours, "videomae": ours}
    names = [row.name for row in make_table(TABLES[number], "x", labels, {QWEN25: {"rb-ft": ours}}, others).rows]
    assert names[:5] == ["uniformerv2", "paper: UniFormerV2", "InternVideo2", "paper: InternVideo2", "videomae"]


def test_cells_are_ours_with_intervals_and_theirs_with_what_follows() -> None:
    table = make_table(TABLES[1], "a world", SMARTHOME_LABELS, {QWEN25: {"rb-ft": OURS}}, {})
    by_name = {row.name: dict(zip(table.columns, row.cells, strict=True)) for row in table.rows}
    assert by_name["RB-FT"]["accuracy"].startswith("85.00 % [") and by_name["RB-FT"]["recall abnormal"].startswith("91.67 % [")
    theirs = by_name[f"paper: {QWEN25}, RB-FT"]
    assert theirs["accuracy"] == "82.65 %" and theirs["F1 normal"] == "76.06 %"
    assert theirs["recall normal"] == "79.41 %" and theirs["balanced accuracy"] == "81.89 %", "54 of 68 and 108 of 128"
    unfit = next(row for row in table.rows if row.name == "paper: UniFormerV2")
    assert "contradict each other" in unfit.note and dict(zip(table.columns, unfit.cells, strict=True))["recall normal"] == ""


def test_two_backbones_are_told_apart_and_three_classes_have_columns() -> None:
    labels = ("normal", "offensive", "hateful")
    ours = metrics_from_confusion([[5, 1, 0], [2, 3, 1], [0, 1, 2]], labels)
    table = make_table(TABLES[2], "titles", labels, {name: {"rb-ft": ours} for name in BACKBONES.values()}, {})
    assert [row.name for row in table.rows[:4]] == [
        *("Qwen2-VL-7B: RB-FT", "paper: Qwen2-VL-7B, RB-FT", "Qwen2.5-VL-7B: RB-FT", "paper: Qwen2.5-VL-7B, RB-FT")
    ]
    assert dict(zip(table.columns, table.rows[1].cells, strict=True))["F1 hateful"] == "14.29 %"


def test_backbones_of_one_architecture_keep_their_own_names_and_the_first_has_the_papers_rows_beside_it() -> None:
    results = {name: {"rb-ft": OURS} for name in ("Qwen2.5-VL-3B", "Qwen2.5-VL-7B-tuned")}
    table = make_table(TABLES[1], "x", SMARTHOME_LABELS, results, {}, paper_models=dict.fromkeys(results, QWEN25))
    assert [row.name for row in table.rows[:3]] == ["Qwen2.5-VL-3B: RB-FT", f"paper: {QWEN25}, RB-FT", "Qwen2.5-VL-7B-tuned: RB-FT"]


def test_a_row_says_that_it_is_read_from_text_and_how_many_were_refused() -> None:
    refused = Prediction("c", "normal", None, error_code="model_refused", generated="I cannot help")
    by_text = [Prediction(id_, "normal", None, generated="normal", generated_label="normal") for id_ in "ab"]
    assert answers_note([*by_text, refused]) == "by generated text; 1 refused"
    assert answers_note([Prediction("a", "normal", "normal")]) == ""
    metrics = metrics_from_confusion([[3, 1, 0], [0, 3, 1]], SMARTHOME_LABELS)
    table = make_table(TABLES[1], "x", SMARTHOME_LABELS, {}, {"gpt-4o": metrics}, notes={"gpt-4o": "by generated text; 1 refused"})
    assert table.rows[0].note == "by generated text; 1 refused; 87.50 % answered, the rest counts as wrong"


def test_the_note_on_masks_counts_the_videos_in_which_nothing_was_found() -> None:
    def rows(*shares: float | None) -> list[Prediction]:
        return [Prediction(str(i), "normal", "normal", masked_share=share) for i, share in enumerate(shares)]

    masking = MaskingConfig(boxes="/data/true.parquet", fill="black", seed=7)
    note = masks_note(rows(0.2, 0.4, 0.0, None), rows(0.2, 0.3, 0.0, None), masking)
    assert note.startswith("2 of 3 videos are masked, on average 30.00 % of their area over objects and 25.00 % at random places; in the")
    assert "true.parquet" in note and "Filled with black; places are drawn with seed 7." in note
    assert "nothing was found" not in masks_note(rows(0.2), rows(0.2), masking)
    assert "grounding" in masks_note(rows(0.2), rows(0.2), MaskingConfig(find="grounding"))


def test_other_labels_have_no_column_of_the_papers_and_that_is_said() -> None:
    ours = metrics_from_confusion([[5, 1], [2, 3]], ("cat", "dog"))
    table = make_table(TABLES[1], "pets", ("cat", "dog"), {"Tiny": {"rb-ft": ours}}, {})
    assert any("other" in note and "no column" in note for note in table.notes)
    assert "paper: Qwen2.5-VL-7B, RB-FT" in table_text(table)


def test_of_systems_that_give_one_answer_for_all_none_is_said_to_be_better() -> None:
    one_answer = metrics_from_confusion([[40, 0], [60, 0]], SMARTHOME_LABELS)
    for systems, is_said in (((one_answer, one_answer), True), ((one_answer, OURS), False)):
        table = make_table(TABLES[1], "a world", SMARTHOME_LABELS, {QWEN25: dict(zip(("zero-shot", "rb-ft"), systems, strict=True))}, {})
        assert any("none is above one answer for all" in note for note in table.notes) == is_said


def test_text_json_and_page_say_the_same() -> None:
    table = make_table(TABLES[3], "<a & b>", SMARTHOME_LABELS, {QWEN25: dict.fromkeys(TABLES[3].systems, OURS)}, {})
    rows = [
        Prediction(str(i), "normal" if i % 2 else "abnormal", "normal" if i % 3 else "abnormal", {"normal": 0.5, "abnormal": 0.5})
        for i in range(9)
    ]
    other = [Prediction(row.id, row.label, "normal", row.probabilities) for row in rows]
    analysis = analyse_failures(rows, other, names=("rb-ft", "direct-sft-2"), attributes={})
    made = {"homes": Made("rbft reproduce table3 <x>", {"commit": "abc123"}, {"torch": "2.9"}, {"evaluation/rb-ft": "evaluation/rb-ft/0f"})}
    page, text, content = render_table(table, {"<a & b>": analysis}, made), table_text(table), table_json(table)
    for row in table.rows:
        assert row.name.replace("'", "&#39;") in page and row.name in text
    for known in ("rbft reproduce table3 &lt;x&gt;", "abc123", "2.9", "evaluation/rb-ft/0f"):
        assert known in page
    assert "differ (&lt;a &amp; b&gt;)" in page and "<script" not in page
    assert [row["name"] for row in content["rows"]] == [row.name for row in table.rows]
    (line,) = (line for line in text.splitlines() if line.startswith("RB-FT  "))
    assert line.count("[") == 3 and "91.67 %" in line, "of the overall scores only"
