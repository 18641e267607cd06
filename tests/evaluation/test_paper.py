"""The paper's numbers: our metrics compute the decoded rows, and the flags say what an exhaustive search finds."""

from __future__ import annotations

import numpy as np
import pytest

from rbft.evaluation.metrics import metrics_from_confusion
from rbft.evaluation.paper import (
    MULTIHATECLIP_NUM_FITTING,
    PAPER_ROWS,
    SMARTHOME_LABELS,
    SMARTHOME_NUM_ABNORMAL,
    SMARTHOME_NUM_NORMAL,
    Flag,
    PaperRow,
    paper_table,
)

# Written here a second time, from the decoded list itself, so that the table in the product cannot drift with the code that reads it.
# Accuracy, F1 normal, F1 abnormal as the paper prints them; then normals right of 68, abnormals right of 128.
DECODED = {
    "T1 Qwen2-VL zero-shot": ("57.65", "59.11", "56.08", 60, 53),
    "T1, T5 Qwen2-VL Direct-SFT": ("69.39", "36.17", "79.87", 17, 119),
    "T1, T3, T5 Qwen2-VL RB-FT": ("80.61", "74.67", "84.30", 56, 102),
    "T1 Qwen2.5-VL zero-shot": ("55.10", "60.36", "48.24", 67, 41),
    "T1 Qwen2.5-VL Direct-SFT": ("76.02", "51.55", "84.07", 25, 124),
    "T1, T3, T4 Qwen2.5-VL RB-FT": ("82.65", "76.06", "86.40", 54, 108),
    "T1 GPT-4o": ("62.76", "63.32", "62.18", 63, 60),
    "T1 Gemini-2.5-Pro": ("73.47", "70.11", "76.15", 61, 83),
    "T3 Qwen2-VL P+C+R": ("79.59", "73.33", "83.47", 55, 101),
    "T3 Qwen2-VL P+R+C": ("80.61", "73.97", "84.55", 54, 104),
    "T5 Direct-SFT, random masks": ("66.84", "21.69", "78.96", 9, 122),
    "T5 Direct-SFT, object masks": ("67.86", "18.18", "80.00", 7, 126),
    "T5 RB-FT, random masks": ("75.51", "63.08", "81.68", 41, 107),
    "T5 RB-FT, object masks": ("66.33", "40.00", "76.60", 22, 108),
}


@pytest.mark.parametrize("row", DECODED, ids=str)
def test_metrics_give_the_papers_two_decimals_on_a_decoded_matrix(row: str) -> None:
    accuracy, f1_normal, f1_abnormal, num_normal_right, num_abnormal_right = DECODED[row]
    matrix = [[num_normal_right, 68 - num_normal_right], [128 - num_abnormal_right, num_abnormal_right]]
    metrics = metrics_from_confusion(matrix, ("normal", "abnormal"))
    ours = [metrics.accuracy, metrics.per_class["normal"].f1, metrics.per_class["abnormal"].f1]
    assert [f"{100 * value:.2f}" for value in ours] == [accuracy, f1_normal, f1_abnormal]


def test_there_are_fourteen_decoded_matrices_and_the_product_holds_the_same() -> None:
    ours = {(row.confusion[0][0], row.confusion[1][1]) for row in PAPER_ROWS if row.flag is Flag.DECODED}
    assert ours == {(normal, abnormal) for *_, normal, abnormal in DECODED.values()}
    assert len(DECODED) == 14


def test_direct_sft_is_close_to_always_abnormal_and_rbft_repairs_normal_recall() -> None:
    direct, rbft = (metrics_from_confusion(row.confusion, SMARTHOME_LABELS) for row in paper_table(1)[-2:])
    assert (direct.majority_label, f"{100 * direct.majority_accuracy:.2f}") == ("abnormal", "65.31")
    assert [f"{100 * each.balanced_accuracy:.1f}" for each in (direct, rbft)] == ["66.8", "81.9"]
    assert [f"{100 * each.per_class['normal'].recall:.0f}" for each in (direct, rbft)] == ["37", "79"]
    assert [f"{100 * each.per_class['abnormal'].recall:.0f}" for each in (direct, rbft)] == ["97", "84"]


@pytest.mark.parametrize("row", [row for row in PAPER_ROWS if row.table != 2], ids=lambda row: f"T{row.table} {row.name}")
def test_a_smarthome_row_is_flagged_as_an_exhaustive_search_over_196_videos_finds(row: PaperRow) -> None:
    fitting = _matrices_that_fit(row)
    if row.flag is Flag.DECODED:
        assert fitting == [(row.confusion[0][0], row.confusion[1][1])]
        assert [sum(line) for line in row.confusion] == [SMARTHOME_NUM_NORMAL, SMARTHOME_NUM_ABNORMAL]
    else:
        assert fitting == [] and row.confusion == ()


@pytest.mark.parametrize("row", paper_table(2), ids=lambda row: row.name)
def test_a_multihateclip_accuracy_is_flagged_as_a_count_of_169_or_not(row: PaperRow) -> None:
    fits = any(abs(100 * k / MULTIHATECLIP_NUM_FITTING - row.accuracy) < 0.00501 for k in range(MULTIHATECLIP_NUM_FITTING + 1))
    assert fits == (row.flag is Flag.ACCURACY_FITS_169)


def test_every_row_of_the_papers_tables_is_there() -> None:
    assert [len(paper_table(table)) for table in range(1, 6)] == [12, 12, 6, 6, 6]
    assert sum(row.flag is Flag.ACCURACY_FITS_169 for row in PAPER_ROWS) == 7


def _matrices_that_fit(row: PaperRow) -> list[tuple[int, int]]:
    normal, abnormal = np.mgrid[0 : SMARTHOME_NUM_NORMAL + 1, 0 : SMARTHOME_NUM_ABNORMAL + 1]
    wrong_normal, wrong_abnormal = SMARTHOME_NUM_NORMAL - normal, SMARTHOME_NUM_ABNORMAL - abnormal
    accuracy = (normal + abnormal) / (SMARTHOME_NUM_NORMAL + SMARTHOME_NUM_ABNORMAL)
    wrong = wrong_normal + wrong_abnormal
    with np.errstate(invalid="ignore"):
        f1_normal, f1_abnormal = (2 * right / (2 * right + wrong) for right in (normal, abnormal))
    printed = (row.accuracy, row.f1["normal"], row.f1["abnormal"])
    close = [np.abs(100 * ours - theirs) < 0.00501 for ours, theirs in zip((accuracy, f1_normal, f1_abnormal), printed, strict=True)]
    return [(int(i), int(j)) for i, j in np.argwhere(close[0] & close[1] & close[2])]
