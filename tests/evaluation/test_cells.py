"""The videos behind a confusion matrix: all of them, in their cells, and a fair share of them shown."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.evaluation.cells import Cell, choose_videos, make_cells
from rbft.evaluation.metrics import evaluate_predictions
from rbft.records import Prediction

LABELS = ("normal", "abnormal", "vague")
OUTCOME = st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, None]), st.sampled_from([0.4, 0.6, 0.9]))


def _row(number: int, label: str, predicted: str | None, share: float) -> Prediction:
    others = dict.fromkeys(LABELS, (1 - share) / 2)
    shares = {} if predicted is None else others | {predicted: share}
    return Prediction(f"clip-{number:03d}", label, predicted, shares)


def _rows(outcomes: list[tuple[str, str | None, float]]) -> list[Prediction]:
    return [_row(number, *outcome) for number, outcome in enumerate(outcomes)]


@given(st.lists(OUTCOME, min_size=1, max_size=60))
def test_the_cells_hold_each_video_once_as_the_confusion_matrix_counts_them(outcomes: list[tuple[str, str | None, float]]) -> None:
    rows = _rows(outcomes)
    cells = make_cells({"rb-ft": rows}, LABELS)
    confusion = evaluate_predictions(rows, LABELS).confusion
    assert {(cell.row, cell.column): len(cell.ids) for cell in cells} == {
        (row, column): count for row, counts in enumerate(confusion) for column, count in enumerate(counts) if count
    }
    assert sorted(id_ for cell in cells for id_ in cell.ids) == sorted(row.id for row in rows)
    assert len({cell.anchor for cell in cells}) == len(cells)


@given(st.lists(OUTCOME, min_size=1, max_size=60), st.lists(OUTCOME, min_size=1, max_size=60), st.integers(0, 40))
def test_as_many_are_chosen_as_wanted_and_every_cell_of_the_main_system_gives_its_least_certain_first(
    ours: list[tuple[str, str | None, float]], theirs: list[tuple[str, str | None, float]], count: int
) -> None:
    size = min(len(ours), len(theirs))
    predictions = {"zero-shot": _rows(theirs[:size]), "rb-ft": _rows(ours[:size])}
    cells = make_cells(predictions, LABELS)
    chosen = choose_videos(cells, "rb-ft", count)
    assert len(chosen) == len(set(chosen)) == min(count, size)
    main = [cell for cell in cells if cell.system == "rb-ft"]
    assert set(chosen[: len(main)]) == {cell.ids[0] for cell in main[: len(chosen)]} or len(chosen) < len(main)
    wrong = [cell.is_wrong for id_ in chosen[: len(main)] for cell in main if id_ in cell.ids]
    assert wrong == sorted(wrong, reverse=True)


def test_in_a_cell_the_least_certain_come_first_and_equals_by_id() -> None:
    rows = [_row(0, "normal", "abnormal", 0.9), _row(2, "normal", "abnormal", 0.4), _row(1, "normal", "abnormal", 0.4)]
    (cell,) = make_cells({"rb-ft": rows}, LABELS)
    assert cell.ids == ("clip-001", "clip-002", "clip-000") and cell.is_wrong


def test_a_small_cell_is_not_crowded_out_by_a_large_one() -> None:
    rows = [_row(number, "normal", "normal", 0.9) for number in range(500)] + [_row(900, "vague", "normal", 0.9)]
    cells = make_cells({"rb-ft": rows}, LABELS)
    assert choose_videos(cells, "rb-ft", 5)[0] == "clip-900"


def test_text_beside_likelihoods_has_cells_but_no_turn() -> None:
    rows = [
        Prediction("a", "normal", "normal", {"normal": 1.0}, {}, "hm", None),
        Prediction("b", "normal", "normal", {}, {}, "normal", "normal"),
    ]
    cells = make_cells({"rb-ft": rows}, LABELS)
    assert Counter(cell.mode for cell in cells) == {"likelihood": 1, "generate": 2}
    assert [cell.is_main for cell in cells] == [True, False, False]
    assert choose_videos(cells, "rb-ft", 1) == ["b"]  # no probability: the least certain


@pytest.mark.parametrize("name", ['"><script>', "a b", "#x"])
def test_a_systems_name_is_in_no_anchor(name: str) -> None:
    (cell,) = make_cells({name: [_row(0, "normal", "normal", 0.9)]}, LABELS)
    assert cell == Cell(name, "likelihood", 0, 0, "0-likelihood", ("clip-000",), True)
    assert cell.anchor == "cell-0-likelihood-0-0"
