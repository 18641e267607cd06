"""What a system's name means."""

from __future__ import annotations

import pytest

from rbft.evaluation.tables import system_title
from rbft.systems import DEFAULT_SYSTEMS, FAMILIES, parse_system, parse_systems


def test_the_papers_systems_and_what_tells_them_apart() -> None:
    zero_shot, one, two, rb_ft = parse_systems(DEFAULT_SYSTEMS)
    assert [system.classify_times for system in (zero_shot, one, two, rb_ft)] == [0, 1, 2, 1]
    assert [system.rationales for system in (zero_shot, one, two, rb_ft)] == [None, None, None, "own"]


def test_a_number_of_labels_is_part_of_the_name() -> None:
    system = parse_system("rb-ft-unlabelled@64")
    assert (system.name, system.family, system.num_labels) == ("rb-ft-unlabelled@64", "rb-ft-unlabelled", 64)
    assert system.unlabelled_too and system.rationales == "own"
    assert all(parse_system(family).num_labels is None for family in FAMILIES if family not in ("rb-ft-mix", "rb-ft-part"))


@pytest.mark.parametrize("name", ["rbft", "rb-ft@", "rb-ft@0", "rb-ft@-4", "RB-FT", "rb-ft@64@64", ""])
def test_other_names_are_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(ValueError, match=r"no system is called .* there are zero-shot, direct-sft-1"):
        parse_system(name)


def test_zero_shot_learns_from_no_labels() -> None:
    with pytest.raises(ValueError, match="learns from no labels"):
        parse_system("zero-shot@64")


def test_table_4_takes_some_own_rationales_and_human_text_for_the_rest() -> None:
    mixed, part = parse_systems(["rb-ft-mix-20", "rb-ft-part-60@64"])
    assert (mixed.family, mixed.rationales, mixed.own_percent, mixed.rest, mixed.num_labels) == ("rb-ft-mix", "own", 20, "human", None)
    assert (part.family, part.own_percent, part.rest, part.num_labels) == ("rb-ft-part", 60, "none", 64)


def test_table_3_puts_the_label_before_or_after_the_rationale() -> None:
    assert [system.target for system in parse_systems(["rb-ft-label-first", "rb-ft-label-last", "rb-ft"])] == [
        *("label-first", "label-last", "rationale"),
    ]


@pytest.mark.parametrize("name", ["rb-ft-mix", "rb-ft-mix-0", "rb-ft-mix-100", "rb-ft-20", "direct-sft-1-20", "rb-ft-part-20-20"])
def test_a_percentage_belongs_to_mixes_only_and_says_something(name: str) -> None:
    with pytest.raises(ValueError, match=r"no system is called .* rb-ft-mix-P, rb-ft-part-P"):
        parse_system(name)


def test_every_system_has_a_title() -> None:
    names = [f"{family}-20" if family in ("rb-ft-mix", "rb-ft-part") else family for family in FAMILIES]
    assert len({system_title(name) for name in names}) == len(names) and not set(map(system_title, names)) & set(names)
    assert system_title("rb-ft-mix-20@64") == "RB-FT, 20 % own rationales, else human, 64 labels" and system_title("GPT-4o") == "GPT-4o"
