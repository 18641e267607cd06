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
from rbft.evaluation.report import render_report, write_report
from rbft.evaluation.report_data import ReportData, ReportSection, choose_samples, rationale_statistics, report_data
from rbft.records import Clip, Example, Prediction, Rationale
from rbft.task import Dimension, Task

TASK = Task(
    name="doors",
    labels=("normal", "abnormal"),
    persona="security expert",
    dimensions=(Dimension(heading="Subjects", describe="who"),),
    question="Normal or abnormal?",
)
ATTACK = "<script>alert(1)</script>"
OTHER = {"normal": "abnormal", "abnormal": "normal"}


def _predictions(share_right: float, num_clips: int = 60) -> list[Prediction]:
    rows = []
    for i in range(num_clips):
        label = "normal" if i % 3 == 0 else "abnormal"
        predicted = label if (i * 7919 % num_clips) / num_clips < share_right else OTHER[label]
        sure = 0.5 + i / (2 * num_clips)
        rows.append(Prediction(f"clip-{i}", label, predicted, {predicted: sure, OTHER[predicted]: 1 - sure}, {}, predicted, predicted))
    return rows


def _clip(num_frames: int = 8, height: int = 84, width: int = 112) -> Clip:
    frames = np.zeros((num_frames, height, width, 3), dtype=np.uint8)
    frames[..., 0] = np.linspace(0, 255, num_frames, dtype=np.uint8)[:, None, None]
    return Clip(frames, tuple(float(i) for i in range(num_frames)), 1.0, float(num_frames), 25.0, "pyav")


@pytest.fixture(scope="module")
def report() -> ReportData:
    predictions = {"zero-shot": _predictions(0.5), "direct-sft-2": _predictions(0.6), "rb-ft": _predictions(0.9)}
    evil = f'"><img src=x onerror=alert(1)>{ATTACK}'
    for rows in predictions.values():
        rows.append(Prediction(evil, "normal", None, error_code="video_decode", error_message=f"{evil}: truncated"))
    ids = [*choose_samples(predictions, count=6), evil]
    return report_data(
        title=f"Doors {ATTACK}",
        task=TASK,
        examples=[
            *(Example(row.id, "x", label=row.label, split="test", category=f"Wildlife, {ATTACK}") for row in predictions["rb-ft"]),
            Example("t", "x", label="abnormal", split="train", category="Wildlife"),
            Example("u", "x", split="train"),
        ],
        predictions=predictions,
        rationales=[Rationale("u", 0, text="x", num_tokens=40, finish_reason="stop"), Rationale("v", 0, error_code="video_empty")],
        curves=[LossCurve("rb-ft", "stage-1", tuple(range(1, 51)), (*(2 / step for step in range(1, 50)), float("nan")))],
        sample_ids=ids,
        clips={each: _clip() for each in ids[:-1]},
        sample_rationales={
            ids[0]: Rationale(ids[0], 0, text="x", sections={"Subjects": f"a man {ATTACK}"}),
            ids[1]: Rationale(ids[1], 0, text=f"no headings {ATTACK}"),
            ids[2]: Rationale(ids[2], 0, error_code="engine", error_message=ATTACK),
        },
        wall_s={f"train {ATTACK}": 61.0},
        versions={"torch": f"2.13 {ATTACK}"},
        durations_s={f"clip-{i}": 4.0 + i for i in range(20)},
        provenance={"command": f"python x.py --set a={ATTACK}"},
    )


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
    assert references and all(reference.startswith("data:image/") for reference in references)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|@import|url\(", render_report(report))


def test_texts_from_outside_stay_texts(page: _Page) -> None:
    text = "".join(page.text)
    assert text.count(ATTACK) >= 9  # title, heading, id, error, three rationales, wall time, versions, command
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


def test_shown_videos_begin_with_the_wrong_ones_and_have_their_frames(page: _Page, report: ReportData) -> None:
    wrong = [sample.wrong for sample in report.samples]
    assert wrong == sorted(wrong, reverse=True) and {True, False} == set(wrong)
    ids = [sample.id for sample in report.samples]
    positions = ["\n".join(page.text).index(each) for each in ids]
    assert positions == sorted(positions)
    assert sum(tag == "img" for tag, _ in page.tags) == 8 * (len(ids) - 1)


def test_the_samples_are_the_most_confident_mistakes_then_right_ones() -> None:
    predictions = {"direct-sft-1": _predictions(0.2), "rb-ft": _predictions(0.6)}
    by_id = {row.id: row for row in predictions["rb-ft"]}
    chosen = [by_id[each] for each in choose_samples(predictions, count=9)]
    wrong = [row.probabilities[row.predicted or ""] for row in chosen if row.predicted != row.label]
    everything = [row.probabilities[row.predicted or ""] for row in by_id.values() if row.predicted != row.label]
    assert wrong == sorted(everything, reverse=True)[:6]
    assert len(chosen) == 9 and all(row.predicted == row.label for row in chosen[6:])
    assert choose_samples(predictions, count=9) == [row.id for row in chosen]


def test_samples_are_filled_up_when_there_are_few_mistakes_or_few_right_ones() -> None:
    assert len(choose_samples({"rb-ft": _predictions(1.0)}, count=5)) == 5
    assert len(choose_samples({"rb-ft": _predictions(0.0)}, count=5)) == 5
    assert len(choose_samples({"rb-ft": _predictions(0.5, num_clips=3)}, count=12)) == 3


def test_a_run_of_one_system_still_has_a_report() -> None:
    rows = [Prediction("a", "normal", "normal"), Prediction("b", "abnormal", None, error_code="video_missing")]
    alone = report_data(title="Alone", task=TASK, examples=[], predictions={"zero-shot": rows}, sample_ids=["a", "b"])
    assert alone.systems[0].generate is None and alone.comparisons == ()
    assert "50.00 %" in render_report(alone)


def test_the_report_is_written_whole_and_replaces_the_last_one(tmp_path: Path, report: ReportData) -> None:
    uri = f"{tmp_path}/runs/x/report.html"
    for _ in range(2):
        write_report(report, uri)
    assert Path(uri).read_text(encoding="utf-8") == render_report(report)
    assert [each.name for each in Path(uri).parent.iterdir()] == ["report.html"]


def test_frames_are_spread_over_the_clip_and_small() -> None:
    images = frame_images(_clip(num_frames=60, height=420, width=360))
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
