"""The paper's tables and Figure 2 of a finished run: nothing is trained again, and a second time nothing is asked again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from miniature.boxes import write_world_boxes
from miniature.world import sample_world
from miniature.write import write_world
from rbft.evaluation.paper import PAPER_ROWS
from tests.integration.conftest import NUM_TEST, NUM_TRAIN, Jobs

pytestmark = pytest.mark.timeout(900)

WHAT = ("table1", "table5", "figure2")


def reproduce(jobs: Jobs, what: tuple[str, ...] = WHAT) -> str:
    world = jobs.manifest.parent
    boxes = write_world_boxes(world)
    settings = (
        *(f"evaluation.masking.boxes={boxes}", f"evaluation.attributes={world / 'truth.parquet'}"),
        "evaluation.attention.num_shown=4",
    )
    return jobs.run("reproduce", "whole", *settings, flags=what)


@pytest.fixture(scope="module")
def printed(jobs: Jobs, finished_run: Path) -> str:
    return reproduce(jobs)


def kept(run: Path, what: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / f"reproduction/{what}.json").read_text())
    return content


def rows(table: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {row["name"]: dict(zip(table["columns"], row["cells"], strict=True)) for row in table["rows"]}


def test_ours_stand_beside_the_authors_under_a_title_that_names_the_data(printed: str, finished_run: Path) -> None:
    assert "DeepSpeed workers" not in printed, "it was all trained already"
    table = kept(finished_run, "table1")
    assert table["title"].endswith("(miniature world)") and table["title"] in printed
    found = rows(table)
    summary = json.loads((finished_run / "summary.json").read_text())["systems"]
    assert found["RB-FT"]["accuracy"].startswith(f"{100 * summary['rb-ft']['accuracy']:.2f} %")
    assert found["paper: Qwen2.5-VL-7B, RB-FT"]["recall normal"] == "79.41 %"
    assert "paper: GPT-4o" in found


def test_failures_are_counted_by_label_and_by_what_is_known_of_the_videos(printed: str, finished_run: Path) -> None:
    (analysis,) = kept(finished_run, "table1")["failures"].values()
    for attribute in ("label", "subject", "scene"):
        counts = analysis["by_attribute"][attribute].values()
        assert sum(each["both_right"] + each["only_system"] + each["only_baseline"] + each["both_wrong"] for each in counts) == NUM_TEST
    assert "boxes" not in analysis["by_attribute"], "too many values to say anything"


def test_behind_masks_each_system_is_asked_again_and_without_them_it_is_not(printed: str, finished_run: Path) -> None:
    found = rows(kept(finished_run, "table5"))
    for title in ("Direct-SFT (1 epoch)", "RB-FT"):
        assert {f"{title}, random masks", f"{title}, object masks", title} <= found.keys()
    assert found["RB-FT"] == rows(kept(finished_run, "table1"))["RB-FT"]
    assert printed.count(f"scoring {4 * NUM_TEST} clips") == 1
    (note,) = (note for note in kept(finished_run, "table5")["notes"] if "videos are masked" in note)
    assert note.startswith(f"{NUM_TEST} of {NUM_TEST} videos are masked, on average ") and "Filled with the clip's mean colour" in note


def test_the_figure_has_a_strip_a_video_and_a_number_a_model(printed: str, finished_run: Path) -> None:
    figure = kept(finished_run, "figure2")
    assert set(figure["models"]) == {"Direct-SFT (1 epoch)", "RB-FT"}
    for model in figure["models"].values():
        assert 0 < model["here"]["num_videos"] <= NUM_TEST and model["here"]["enrichment"] > 0
    page = (finished_run / "reproduction/figure2.html").read_text()
    assert page.count("data:image/png;base64,") == len(figure["shown"]) == 4
    assert figure["provenance"]["command"] in page


def test_a_second_time_it_asks_no_engine(printed: str, finished_run: Path, jobs: Jobs) -> None:
    before = [kept(finished_run, what) for what in WHAT[:2]]
    again = reproduce(jobs)
    assert "scoring" not in again and "attention: reading" not in again
    for what, content in zip(WHAT[:2], before, strict=True):
        assert kept(finished_run, what)["rows"] == content["rows"]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_tables_on_rationales_train_what_they_compare_and_nothing_twice(printed: str, finished_run: Path, jobs: Jobs) -> None:
    reproduce(jobs, ("table3", "table4"))
    third, fourth = (kept(finished_run, what) for what in ("table3", "table4"))
    assert {"RB-FT, label then rationale", "RB-FT, rationale then label", "RB-FT"} <= rows(third).keys()
    assert {"RB-FT, 20 % own rationales, else human", "RB-FT, 60 % own rationales, else human", "RB-FT"} <= rows(fourth).keys()
    main = rows(kept(finished_run, "table1"))["RB-FT"]
    for table in (third, fourth):
        assert table["title"].endswith("(miniature world)") and not table["failures"]
        assert rows(table)["RB-FT"] == main, "the same model"
        assert sum(name.startswith("paper: ") for name in rows(table)) == sum(row.table == table["table"] for row in PAPER_ROWS)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_table_2_is_of_three_classes_and_says_who_fails_where(jobs: Jobs, tmp_path: Path) -> None:
    manifest = write_world(tmp_path / "world", sample_world(seed=78, sizes={"train": NUM_TRAIN, "test": NUM_TEST}, task="miniature-titles"))
    task = jobs.repository / "configs/tasks/miniature-titles.yaml"
    printed = jobs.run("reproduce", "titled", f"task={task}", f"data.manifest={manifest}", flags=("table2",))
    table = kept(jobs.run_dir("titled"), "table2")
    labels = [column.removeprefix("F1 ") for column in table["columns"] if column.startswith("F1 ")]
    assert len(labels) == 3 and table["title"] in printed
    assert {"Zero-shot", "Direct-SFT (1 epoch)", "Direct-SFT (2 epochs)", "RB-FT", "paper: Qwen2.5-VL-7B, RB-FT"} <= rows(table).keys()
    assert set(table["failures"]) == {"miniature world"}
    assert (
        "Where RB-FT and Direct-SFT (2 epochs) differ (miniature world)"
        in (jobs.run_dir("titled") / "reproduction/table2.html").read_text()
    )
