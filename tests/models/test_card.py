"""The model card says what is known, and that the rest is not."""

from __future__ import annotations

import re

import pytest
import yaml

from rbft.models.card import model_card
from rbft.task import Task
from tests.samples import SPEC, TASK

LINEAGE = {
    **{"run": "homes: night", "system": "rb-ft", "stage": "classify", "base": "ab" * 8, "base_model": "Qwen2.5-VL-7B-Instruct"},
    **{"seed": 3, "epochs": 1, "optimiser": {"lr_language": 1e-5, "lr_vision": 2e-6}, "num_items": 778, "num_replay": 8},
    **{"classes": {"abnormal": 494, "normal": 284}, "videos": "cd" * 8, "split": "ef" * 8, "versions": {"torch": "2.13.0"}},
    "validation": {"num_videos": 64},
}
SCORES = {"accuracy": 0.75, "balanced_accuracy": 0.7, "macro_f1": 0.71234, "loss": 0.3, "coverage": 1.0}


def front_matter(card: str) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return found


def test_a_hub_can_read_its_front_matter() -> None:
    facts = front_matter(model_card(TASK, SPEC, LINEAGE, SCORES))
    assert facts["library_name"] == "transformers" and facts["tags"] == ["video-classification", "rb-ft", "homes"]
    assert facts["model-index"] == [
        {
            "name": "homes: night: rb-ft",
            "results": [
                {
                    "task": {"type": "video-classification"},
                    "dataset": {"name": "homes", "type": "homes", "split": "validation"},
                    "metrics": [{"type": "macro_f1", "value": 0.7123}, {"type": "accuracy", "value": 0.75}],
                }
            ],
        }
    ]


def test_it_has_data_metrics_hyperparameters_and_lineage() -> None:
    card = model_card(TASK, SPEC, LINEAGE, SCORES)
    for line in (
        *("| abnormal | 494 |", "| normal | 284 |", "778 training samples", "`efefefefefefefef`", "On 64 videos of the validation split"),
        *("| macro_f1 | 0.7123 |", "| lr_vision | `2e-06` |", "| seed | `3` |", "| base_model | `Qwen2.5-VL-7B-Instruct` |"),
        *("| num_replay | `8` |", "torch 2.13.0", "> Is this video normal or abnormal?", "## Intended use and limits"),
    ):
        assert line in card, line
    assert re.findall("^## (.*)$", card, re.MULTILINE) == [
        *("Use", "Data", "Metrics", "Training", "Lineage", "Intended use and limits"),
    ]


def test_what_was_not_measured_is_said_not_to_be() -> None:
    card = model_card(TASK, SPEC, {"run": "tiny"})
    assert "None were measured while it trained" in card and "Class counts were not recorded" in card
    assert "None were measured" not in model_card(TASK, SPEC, LINEAGE), "they were, and are not known here"
    assert "model-index" not in front_matter(card)


def test_an_intermediate_model_is_called_one_and_asked_for_a_rationale() -> None:
    card = model_card(TASK, SPEC, LINEAGE | {"stage": "rationale"})
    assert "an intermediate model" in card and "> You are a security expert" in card


@pytest.mark.parametrize("name", ["--- # x", 'a "b" \\ c', "ä: {b}", "line\nbreak"])
def test_no_name_breaks_the_front_matter_or_a_table(name: str) -> None:
    task = Task(**(TASK.model_dump() | {"name": name}))
    facts = front_matter(model_card(task, SPEC, {"run": "r", "system": "a | b"}, SCORES))
    assert facts["tags"] == ["video-classification", "rb-ft", name]
