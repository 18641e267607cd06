"""The report: one file that needs nothing else, whatever the texts in it hold."""

from __future__ import annotations

import io
import re
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from rbft.evaluation.curves import LossCurve
from rbft.evaluation.figures import frame_images, loss_plot
from rbft.evaluation.metrics import confidence
from rbft.evaluation.report import render_report, write_report
from rbft.evaluation.report_data import ReportData, ReportSection, rationale_statistics, report_data
from rbft.records import Prediction, Rationale
from tests.evaluation.sample_report import ATTACK, TASK, sample_clip, sample_report


@pytest.fixture(scope="module")
def report() -> ReportData:
    return sample_report()


class _Page(HTMLParser):
    """Every tag of a page with its attributes, its visible text, and the tags left open at its end."""

    VOID = ("meta", "img", "br", "line", "circle", "polyline")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def page(report: ReportData) -> _Page:
    return _Page(render_report(report))


def test_every_tag_of_the_page_is_closed_in_order(page: _Page) -> None:
    assert page.open == []


def test_the_page_refers_to_nothing_outside_itself(page: _Page, report: ReportData) -> None:
    references = [attrs[name] or "" for _, attrs in page.tags for name in ("src", "href", "srcset", "xlink:href", "data") if name in attrs]
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert references and all(reference.startswith("data:image/") or reference[1:] in ids for reference in references)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|@import|url\(", render_report(report))


def test_texts_from_outside_stay_texts(page: _Page) -> None:
    text = "".join(page.text)
    # title, heading, id, error, three rationales, wall time, versions, command, sources, note
    assert text.count(ATTACK) >= 13
    assert all(not name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_the_page_says_what_came_out_with_its_intervals(page: _Page, report: ReportData) -> None:
    text = " ".join("".join(page.text).split())
    comparison = report.comparisons[0]
    assert (comparison.system, comparison.baseline) == ("rb-ft", "direct-sft-2")
    assert re.search(r"RB-FT − Direct-SFT \(2 epochs\): [+−]?\d+\.\d\d points balanced accuracy, 95 % interval", text)
    for system in report.systems:
        low, high = system.main.ci95["accuracy"]
        assert f"{100 * system.main.accuracy:.2f} % [{100 * low:.2f}, {100 * high:.2f}]" in text
    assert "Always 'abnormal'" in text and "video_decode" in text and "no label" in text
    for word in ("AUROC", "ECE", "McNemar’s p", "Each category's majority label", "Wildlife", "under 5 s", "5 to 15 s"):
        assert word in text
    assert "The paper’s numbers, on its own data" in text and "no N fits" in text


def test_shown_videos_begin_with_the_wrong_ones_the_least_certain_first(page: _Page, report: ReportData) -> None:
    wrong = [video.wrong for video in report.videos]
    assert wrong == sorted(wrong, reverse=True) and {True, False} == set(wrong)
    for of_wrong in (True, False):
        rows = [video.answers["rb-ft"] for video in report.videos if video.wrong == of_wrong]
        sureness = [confidence(row) or 0.0 for row in rows]
        assert sureness == sorted(sureness)
    text = "\n".join(page.text)
    positions = [text.rindex(f"{video.id}\n") for video in report.videos if video.id.startswith("clip")]
    assert positions == sorted(positions)
    assert sum(tag == "img" for tag, _ in page.tags) == 8 * (len(report.videos) - 1) + 8 * 4  # frames; the heatmaps of four


def test_every_cell_with_shown_videos_is_a_link_to_its_heading_and_every_card_is_in_one_cell_of_each_matrix(
    page: _Page, report: ReportData
) -> None:
    links = [(attrs["href"] or "")[1:] for tag, attrs in page.tags if tag == "a" and "cell-" in (attrs["href"] or "")]
    shown = {video.id for video in report.videos}
    assert sorted(links) == sorted(cell.anchor for cell in report.cells if shown.intersection(cell.ids))
    assert sum(len(cell.ids) for cell in report.cells if cell.matrix == "2-likelihood") == 61
    of_card = {cell.anchor: set(cell.ids) for cell in report.cells}
    cards = [attrs for tag, attrs in page.tags if tag == "article"]
    assert len(cards) == len(report.videos)
    for card, video in zip(cards, report.videos, strict=True):
        anchors = [name for name in (card["class"] or "").split() if name.startswith("cell-")]
        assert len(anchors) == 6  # three systems, by likelihood and by text
        assert all(video.id in of_card[anchor] for anchor in anchors)


def test_a_cell_says_how_many_of_its_videos_are_not_shown_and_where_they_are(page: _Page, report: ReportData) -> None:
    (cell,) = [cell for cell in report.cells if (cell.system, cell.mode, cell.row, cell.column) == ("rb-ft", "likelihood", 1, 1)]
    shown = len({video.id for video in report.videos} & set(cell.ids))
    assert 0 < shown < len(cell.ids)
    text = " ".join("".join(page.text).split())
    more = (
        f"{len(cell.ids)} videos; {shown} of them here, the least certain first, and {len(cell.ids) - shown} more: see runs/{ATTACK}/rb-ft"
    )
    assert f"RB-FT: abnormal answered rightly. {more}" in text


def test_every_table_of_numbers_says_where_they_come_from(page: _Page) -> None:
    text = " ".join("".join(page.text).split())
    assert text.count("Where these numbers come from") == 6  # results, probabilities, slices, differences, matrices, curves
    for words in ("fingerprint", "0f1e", "61 of split test", "SHA-256 ab12", "drawn with seed 0", "2,000 resamples", "harmonic mean"):
        assert words in text


def test_a_report_of_three_hundred_labels_stays_small_and_lists_the_most_frequent_mistakes() -> None:
    labels = tuple(f"label-{n:03d}" for n in range(300))

    def said(id_: str, truth: int, answered: int) -> Prediction:
        return Prediction(id_, labels[truth], None, generated=labels[answered], generated_label=labels[answered])

    rows = [said(f"v{n}", n % 300, (n % 300 + n // 300 * 7) % 300) for n in range(9000)] + [said(f"w{n}", 5, 9) for n in range(50)]
    predictions = {"rb-ft": rows}
    task = TASK.model_copy(update={"labels": labels})
    report = report_data(title="Wide", task=task, examples=[], predictions=predictions, shown_ids=["w3", "v301"])
    page = render_report(report)
    assert len(report.cells) > 9000 and len(page) < 2_000_000
    assert page.count(":target ~ .cards > .cell") == len([cell for cell in report.cells if {"w3", "v301"}.intersection(cell.ids)])
    (largest,) = [cell for cell in report.cells if cell.matrix == "0-generate" and (cell.row, cell.column) == (5, 9)]
    assert f'<tr><th scope="row">label-005</th><td>label-009</td><td><a href="#{largest.anchor}">50</a>' in page
    assert "too many labels to draw confusion matrices" in page and 'class="matrix"' not in page


def test_a_run_of_one_system_still_has_a_report() -> None:
    rows = [Prediction("a", "normal", "normal"), Prediction("b", "abnormal", None, error_code="video_missing")]
    alone = report_data(title="Alone", task=TASK, examples=[], predictions={"zero-shot": rows}, shown_ids=["a", "b"])
    assert alone.systems[0].generate is None and alone.comparisons == ()
    page = render_report(alone)
    assert "50.00 %" in page and "No frames to show" in page
    assert "when it is asked for a rationale" not in page and "No rationale was made" not in page  # nobody asked


def test_the_report_is_written_whole_and_replaces_the_last_one(tmp_path: Path, report: ReportData) -> None:
    uri = f"{tmp_path}/runs/x/report.html"
    for _ in range(2):
        write_report(report, uri)
    assert Path(uri).read_text(encoding="utf-8") == render_report(report)
    assert [each.name for each in Path(uri).parent.iterdir()] == ["report.html"]


def test_frames_are_spread_over_the_clip_and_small() -> None:
    images = frame_images(sample_clip(num_frames=60, height=420, width=360))
    assert [image.timestamp_s for image in images] == [0, 8, 17, 25, 34, 42, 51, 59]
    decoded = [Image.open(io.BytesIO(b64decode(image.uri.split(",")[1]))) for image in images]
    assert all(each.size == (image.width, image.height) == (96, 112) for each, image in zip(decoded, images, strict=True))
    reds = [np.asarray(each)[..., 0].mean() for each in decoded]
    assert reds[0] < 5 and reds[-1] > 250 and reds == sorted(reds)


def test_a_curve_with_losses_that_are_not_finite_is_drawn_with_gaps() -> None:
    nan, inf = float("nan"), float("inf")
    plot = str(loss_plot(LossCurve("rb-ft", "stage-1", tuple(range(1, 8)), (2.0, 1.0, nan, 1.0, inf, 0.5, 0.4))))
    assert "nan" not in plot and "inf" not in plot
    assert plot.count('class="raw"') == 3


@pytest.mark.parametrize("losses", [(1.0,), (0.0, 0.0), (float("nan"),)])
def test_the_shortest_and_flattest_curves_can_be_drawn(losses: tuple[float, ...]) -> None:
    assert loss_plot(LossCurve("x", "y", tuple(range(1, len(losses) + 1)), losses)).startswith("<svg")


def test_a_long_curve_is_drawn_with_few_points() -> None:
    steps = tuple(range(1, 100_001))
    plot = loss_plot(LossCurve("x", "y", steps, tuple(1 / step for step in steps)))
    assert len(plot) < 15_000


def test_rationale_statistics_count_every_row_once() -> None:
    rows = [
        Rationale("a", 0, text="x", num_tokens=40, finish_reason="stop"),
        Rationale("b", 0, text="x", num_tokens=60, finish_reason="length"),
        Rationale("c", 0, error_code="video_decode"),
    ]
    statistics = rationale_statistics(rows)
    assert (statistics.num_rationales, statistics.num_errors, statistics.mean_tokens) == (2, 1, 50)
    assert (statistics.finish_reasons, statistics.error_codes) == ({"stop": 1, "length": 1}, {"video_decode": 1})
    assert rationale_statistics(rows[2:]).mean_tokens is None


def test_a_section_that_the_caller_brings_stands_before_the_runs_own(report: ReportData) -> None:
    page = render_report(replace(report, sections=(ReportSection("Across <worlds>", Markup("<p>five of them</p>")),)))
    assert page.index("<h2>Across &lt;worlds&gt;</h2>") < page.index("<p>five of them</p>") < page.index("<h2>Results of one run</h2>")
    assert "Results of one run" not in render_report(report)
