"""Which draws are made and which is kept, for any outcome of the gates."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from miniature.base import load_task
from rbft.config import GatesConfig
from rbft.rationales.draws import Draw, draw_rationale
from rbft.rationales.gates import check_rationale
from rbft.records import Rationale
from tests.rationales.test_gates import GOOD

TASK = load_task()
TEXTS = {0: GOOD, 1: GOOD + " This is abnormal.", 2: "Abnormal it is."}
"""Number of gates failed (of those that count below) -> a text."""


def draw(faults: list[int], gates: GatesConfig, label: str | None) -> tuple[Rationale, list[Draw]]:
    """What is kept of draws that fail so many gates, and the draws that were made."""
    made: list[Draw] = []

    async def ask(each: Draw) -> Rationale:
        made.append(each)
        return Rationale("v", each.sample, TEXTS[faults[each.sample]], provenance={"label_in_prompt": each.is_hinted})

    return asyncio.run(draw_rationale(ask, TASK, label, 0.0, gates)), made


gates_of = {"drop": ("has_sections", "names_no_label")}
any_faults = st.lists(st.integers(0, 2), min_size=8, max_size=8)


def test_the_texts_fail_as_many_gates_as_they_say() -> None:
    for count, text in TEXTS.items():
        assert len(set(check_rationale(Rationale("v", 0, text), TASK)) & set(gates_of["drop"])) == count


@given(any_faults, st.integers(0, 5), st.booleans(), st.sampled_from([None, "normal"]))
def test_resampling_stops_at_the_first_that_passes_and_keeps_the_best(
    faults: list[int], num_redraws: int, hint: bool, label: str | None
) -> None:
    gates = GatesConfig(profile="resample", num_redraws=num_redraws, hint=hint, **gates_of)
    kept, made = draw(faults, gates, label)
    is_hinted = hint and label is not None
    most = 1 + num_redraws + is_hinted
    assert [each.sample for each in made] == list(range(len(made))) and len(made) <= most
    assert all(faults[each.sample] for each in made[:-1])
    assert faults[kept.sample] == min(faults[: len(made)]) and (faults[kept.sample] == 0 or len(made) == most)
    assert [each.is_hinted for each in made if each.is_hinted] == [True] * (is_hinted and len(made) == most)
    assert [each.temperature == 0 for each in made] == [True] + [False] * (len(made) - 1)
    others = kept.provenance.get("other_draws", [])
    assert sorted([kept.sample, *(each["sample"] for each in others)]) == list(range(len(made)))
    assert all(len(each["failed"]) == faults[each["sample"]] for each in others)


@given(any_faults, st.integers(2, 8))
def test_best_of_n_keeps_the_first_of_those_that_fail_least(faults: list[int], num_samples: int) -> None:
    kept, made = draw(faults, GatesConfig(profile="best_of_n", num_samples=num_samples, **gates_of), "abnormal")
    assert len(made) == num_samples and not any(each.is_hinted for each in made)
    assert kept.sample == faults[:num_samples].index(min(faults[:num_samples]))


@given(any_faults, st.sampled_from(["paper", "filter"]))
def test_other_profiles_draw_once(faults: list[int], profile: str) -> None:
    kept, made = draw(faults, GatesConfig.model_validate({"profile": profile}), "normal")
    assert len(made) == 1 and "other_draws" not in kept.provenance
