"""Figure 2's numbers are of the models named beside them, and its page needs nothing else."""

from __future__ import annotations

import pytest

from rbft.config import AttentionConfig, MaskingConfig
from rbft.errors import DataError
from rbft.evaluation import figure2
from rbft.evaluation.figure2 import Figure2, Strip
from rbft.evaluation.looking.focus import Focus
from rbft.evaluation.reproduction_page import Made, render_figure2

TWICE = {f"v{i}": Focus(inside=0.4, area=0.2) for i in range(6)}
EVEN = {f"v{i}": Focus(inside=0.2, area=0.2) for i in range(5)}


def make_figure() -> Figure2:
    rows = figure2.make_rows({"old": (EVEN, EVEN), "new <b>": (TWICE, EVEN)}, seed=0)
    differences = {"new − old": figure2.difference(TWICE, EVEN, seed=0)}
    how, boxes = figure2.how_read(AttentionConfig(num_layers=2)), figure2.whose_boxes(MaskingConfig(boxes="/data/true.parquet"))
    return Figure2("Figure 2 (a world)", rows, differences, how, boxes, (Strip("v0", "v0, normal", "QUJD"),))


def test_each_model_has_its_numbers_and_the_difference_is_over_shared_videos() -> None:
    figure = make_figure()
    assert figure.rows["new <b>"].here.enrichment == pytest.approx(2) and figure.rows["old"].here.enrichment == pytest.approx(1)
    assert figure.rows["new <b>"].elsewhere.enrichment == pytest.approx(1)
    difference = figure.differences["new − old"]
    assert difference.num_videos == 5 and difference.value == pytest.approx(1)


def test_page_text_and_json_say_the_same() -> None:
    figure = make_figure()
    page, text, content = (
        render_figure2(figure, {"homes": Made("rbft reproduce figure2", {}, {}, {})}),
        figure2.figure_text(figure),
        figure2.figure_json(figure),
    )
    assert "new &lt;b&gt;" in page and "<b>" not in page and "<script" not in page
    assert "homes: rbft reproduce figure2" in page
    assert 'src="data:image/png;base64,QUJD"' in page
    assert "2.00" in page and "2.00" in text and content["models"]["new <b>"]["here"]["enrichment"] == pytest.approx(2)
    for said in ("last 2 layers", "true.parquet"):
        assert said in page and said in text
    assert content["shown"] == ["v0"]


def test_without_a_single_box_there_is_no_figure() -> None:
    with pytest.raises(DataError, match="no video has boxes"):
        figure2.make_rows({"old": ({}, {})}, seed=0)


def test_boxes_that_the_model_finds_itself_are_said_to_be_its_own() -> None:
    assert "grounding" in figure2.whose_boxes(MaskingConfig(find="grounding"))
    assert "stands out" in figure2.whose_boxes(MaskingConfig())
