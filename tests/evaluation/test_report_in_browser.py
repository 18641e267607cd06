"""The report and the comparison as a browser shows them: on a phone, on paper, and when a cell of a confusion matrix is opened."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rbft.config import AttentionConfig, MaskingConfig
from rbft.evaluation import figure2
from rbft.evaluation.comparison_page import changed_videos, render_comparison
from rbft.evaluation.figure2 import Figure2, Strip
from rbft.evaluation.locate import FoundPredictions
from rbft.evaluation.looking.attention_map import AttentionMap
from rbft.evaluation.looking.boxes import Box, boxes_in_frames
from rbft.evaluation.looking.focus import Focus
from rbft.evaluation.looking.heatmaps import png, strip
from rbft.evaluation.metrics import metrics_from_confusion
from rbft.evaluation.paper import SMARTHOME_LABELS
from rbft.evaluation.provenance import Source
from rbft.evaluation.report import NUM_AT_FIRST, render_report
from rbft.evaluation.report_data import ReportData
from rbft.evaluation.reproduction import TABLES, make_table
from rbft.evaluation.reproduction_page import Made, render_figure2, render_table
from rbft.evaluation.side_by_side import side_by_side
from tests.browser import Page, browser_page, needs_browser
from tests.evaluation.sample_report import TASK, sample_clip, sample_predictions, sample_report

pytestmark = needs_browser

MADE = {
    "smarthome": Made(
        "rbft reproduce table1 --config configs/smarthome-qwen2.5-vl-7b.yaml",
        {"folder": "runs/smarthome", "commit": "ab" * 20},
        {"torch": "2.9.1"},
        {"train/rb-ft/classify": f"train/rb-ft/classify/{'0f' * 16}"},
    )
}
PHONE, DESK = 390, 1280
PAPER = 718
"""A4 less its margins, at 96 pixels an inch."""
SHOWN = "[...document.querySelectorAll('article')].filter(e => e.offsetHeight > 0)"
IN_ORDER = f"{SHOWN}.sort((a, b) => a.offsetTop - b.offsetTop).map(e => e.querySelector('.id').textContent)"
HEADINGS = "[...document.querySelectorAll('.opened, .closed')].filter(e => e.offsetHeight > 0).map(e => e.id)"
TOO_WIDE = """[...document.querySelectorAll('body *')].filter(e => {
    if (e.getBoundingClientRect().right <= innerWidth + 1 || e.closest('svg svg, svg > *')) return false;
    for (let a = e.parentElement; a; a = a.parentElement) if (getComputedStyle(a).overflowX === 'auto') return false;
    return true;
}).map(e => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def report() -> ReportData:
    return sample_report()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser_page(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, report: ReportData) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_report(report), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def comparison_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("comparison") / "comparison.html"
    names = ("runs/a-rather-long-folder/of-a-run/rb-ft", "rb-ft")
    sides = [
        FoundPredictions(
            name, rows, TASK.labels, None, Source(name, ((f"{name}/predictions-00000.parquet", "ab" * 32),), "0f" * 8, "test", 60)
        )
        for name, rows in zip(names, (sample_predictions(0.6), sample_predictions(0.9)), strict=True)
    ]
    found = side_by_side(sides[0].predictions, sides[1].predictions, TASK.labels, names=names)
    changed = changed_videos(found, sides[0].predictions, sides[1].predictions, limit=4)
    clips = {id_: sample_clip() for kind in changed for id_ in kind.shown}
    path.write_text(render_comparison(found, sides[0], sides[1], changed, clips, seed=0), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def paper_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's Table 1 with rows of ours."""
    path = tmp_path_factory.mktemp("table") / "table1.html"
    ours = metrics_from_confusion([[30, 10], [5, 55]], SMARTHOME_LABELS)
    table = make_table(TABLES[1], "a world", SMARTHOME_LABELS, {"Qwen2.5-VL-7B": dict.fromkeys(TABLES[1].systems, ours)}, {})
    path.write_text(render_table(table, {}, MADE), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def figure_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Figure 2 of two models on a long video."""
    path = tmp_path_factory.mktemp("figure") / "figure2.html"
    focus = {f"clip-{i}": Focus(inside=0.4, area=0.2) for i in range(6)}
    rows = figure2.make_rows(dict.fromkeys(("Direct-SFT (1 epoch)", "RB-FT"), (focus, focus)), seed=0)
    clip = sample_clip()
    maps = {name: AttentionMap(np.full(48, 1 / 48, np.float32), np.full((4, 3, 4), 1 / 48, np.float32)) for name in rows}
    picture = base64.b64encode(png(strip(clip, maps, boxes_in_frames([Box(0.2, 0.2, 0.6, 0.6)], clip)))).decode()
    figure = Figure2(
        "Figure 2: what the models look at (a world)",
        rows,
        {"RB-FT − Direct-SFT (1 epoch)": figure2.difference(focus, focus, seed=0)},
        figure2.how_read(AttentionConfig()),
        figure2.whose_boxes(MaskingConfig()),
        (Strip("clip-0", "clip-0, normal", picture),),
    )
    path.write_text(render_figure2(figure, MADE), encoding="utf-8")
    return path


@pytest.mark.parametrize("which", ["file", "comparison_file", "paper_file", "figure_file"])
@pytest.mark.parametrize("width", [320, PHONE, DESK])
def test_nothing_is_wider_than_the_window(page: Page, which: str, width: int, request: pytest.FixtureRequest) -> None:
    page.open(request.getfixturevalue(which), width=width)
    page.run("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert page.run(TOO_WIDE) == []
    assert page.run("document.documentElement.scrollWidth") == width


def test_the_figure_shows_its_strips_and_fetches_nothing(page: Page, figure_file: Path) -> None:
    page.open(figure_file, width=PHONE)
    assert page.complaints() == []
    assert page.run("[...document.images].map(e => e.complete && e.naturalWidth > e.naturalHeight)") == [True]


def test_before_a_cell_is_chosen_the_main_systems_worst_videos_stand_open(page: Page, file: Path, report: ReportData) -> None:
    page.open(file, width=DESK)
    assert page.run(IN_ORDER) == [video.id for video in report.videos[:NUM_AT_FIRST]]
    assert page.run("document.querySelector('.closed').offsetHeight") > 0


def test_a_cell_opens_its_videos_the_least_certain_first_and_no_others(page: Page, file: Path, report: ReportData) -> None:
    shown = {video.id for video in report.videos}
    page.open(file, width=PHONE)
    for cell in [cell for cell in report.cells if cell.mode == "likelihood" and cell.column < len(TASK.labels)]:
        page.click(f'a[href="#{cell.anchor}"]')
        assert page.run(IN_ORDER) == [id_ for id_ in cell.ids if id_ in shown], cell
        assert page.run(HEADINGS) == [cell.anchor]
        top = page.run(f"document.getElementById('{cell.anchor}').getBoundingClientRect().top")
        assert 0 <= top < 400, "the opened cell is not in view"
    page.click(f"#{cell.anchor} a")
    assert page.run(IN_ORDER) == [video.id for video in report.videos[:NUM_AT_FIRST]]
    page.click('a[href="#all-videos"]')
    assert page.run(IN_ORDER) == [video.id for video in report.videos]


def test_nothing_in_the_page_runs_or_is_fetched_and_a_script_in_it_would_be_stopped(page: Page, file: Path, tmp_path: Path) -> None:
    page.open(file, width=DESK)
    assert page.complaints() == []
    assert page.run("document.querySelectorAll('script, [onerror]').length") == 0
    assert page.run("[...document.images].every(e => e.complete && e.naturalWidth > 0)")
    with_script = tmp_path / "with_script.html"
    with_script.write_text(file.read_text(encoding="utf-8").replace("</main>", "<script>document.title = 'ran'</script></main>"), "utf-8")
    page.open(with_script, width=DESK)
    assert page.run("document.title") != "ran" and any("Content Security Policy" in each for each in page.complaints())


@pytest.mark.parametrize("which", ["file", "comparison_file"])
def test_on_paper_nothing_is_cut_off_and_what_is_folded_is_open(page: Page, which: str, request: pytest.FixtureRequest) -> None:
    page.open(request.getfixturevalue(which), width=PAPER)
    assert not page.run("document.querySelector('.source p').checkVisibility()")
    page.as_printed()
    try:
        assert page.run("[...document.querySelectorAll('details > :not(summary, .files)')].filter(e => !e.checkVisibility()).length") == 0
        assert page.run("[...document.querySelectorAll('.wide, .strip')].filter(e => e.scrollWidth > e.clientWidth + 1).length") == 0
        assert page.run("document.documentElement.scrollWidth") <= PAPER
        assert page.pdf().startswith(b"%PDF-")
    finally:
        page.as_printed(False)
