"""What goes beyond the paper, all of it in one small run: two seeds, validation, balance, replay, the rationale check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from miniature.world import sample_world
from miniature.write import write_world
from tests.integration.conftest import Jobs

pytestmark = pytest.mark.timeout(1500)

NUM_CHECKED = 6


@pytest.fixture(scope="module")
def run(jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished run."""
    manifest = write_world(tmp_path_factory.mktemp("split"), sample_world(seed=91, sizes={"train": 20, "validation": 8, "test": 10}))
    jobs.run(
        "pipeline",
        "beyond",
        f"data.manifest={manifest}",
        "evaluation.systems=[zero-shot,direct-sft-1,rb-ft]",
        "training.seeds=[4]",
        "training.validation={every_steps: 1, patience: 2}",
        "training.class_balance=sampling",
        "training.replay_share=0.2",
        "training.rationale_probe=4",
        f"evaluation.rationale_check={NUM_CHECKED}",
    )
    return jobs.run_dir("beyond")


def test_the_summary_has_means_over_both_seeds(run: Path) -> None:
    seeds = json.loads((run / "summary.json").read_text())["seeds"]
    assert seeds["seeds"] == [0, 4] and set(seeds["systems"]) == {"direct-sft-1", "rb-ft"}
    found = seeds["systems"]["rb-ft"]["macro_f1"]
    assert found["mean"] == pytest.approx(sum(found["by_seed"]) / 2) and found["ci95"][0] <= found["mean"] <= found["ci95"][1]
    assert set(seeds["differences"]) == {"rb-ft - direct-sft-1"}
    assert len(list((run / "rationales").iterdir())) == 1, "greedy rationales are shared"
    assert len(list((run / "train" / "rb-ft" / "classify").iterdir())) == 2
    assert len(list((run / "evaluation" / "zero-shot").iterdir())) == 1


def test_rationales_are_checked_before_and_after_stage_two(run: Path) -> None:
    (system,) = json.loads((run / "summary.json").read_text())["rationale_check"].items()
    assert system[0] == "rb-ft" and system[1]["num_videos"] == NUM_CHECKED
    assert all(0 <= system[1][moment]["all"] <= 1 for moment in ("before", "after"))
    # Stage 1 has taught the miniature its sections.
    assert system[1]["before"]["has_sections"] > 0.5
    loss = system[1]["rationale_loss"]
    assert loss["num_rationales"] == 4 and loss["before"] > 0 and loss["after"] > 0


def test_the_report_begins_with_both(run: Path) -> None:
    report = (run / "report.html").read_text()
    assert report.index("Over 2 seeds") < report.index("Can it still explain?") < report.index("Results of one run")


def test_final_is_of_the_best_validation_and_its_card_says_so(run: Path) -> None:
    for stage in (run / "train" / "rb-ft" / "classify").iterdir():
        validations = json.loads((stage / "validation.json").read_text())
        best = max(validations, key=lambda each: (each["scores"]["macro_f1"], -each["scores"]["loss"]))
        card = (stage / "final" / "README.md").read_text()
        measured = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"][0]["metrics"]
        assert measured[0] == {"type": "macro_f1", "value": round(best["scores"]["macro_f1"], 4)}
        assert "On 8 videos of the validation split" in card and "| class_balance | `sampling` |" in card and "| num_replay |" in card
        lines = [json.loads(line) for line in (stage / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "validation_macro_f1" in line] == [each["step"] for each in validations]
        assert all(line["tokens_per_s"] > 0 and line["memory_bytes"] > 0 and 0 <= line["data_wait_share"] <= 1 for line in lines)
