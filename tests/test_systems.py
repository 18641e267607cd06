"""What a system's name means."""

from __future__ import annotations

import pytest

from rbft.systems import DEFAULT_SYSTEMS, FAMILIES, parse_system, parse_systems


def test_the_papers_systems_and_what_tells_them_apart() -> None:
    zero_shot, one, two, rb_ft = parse_systems(DEFAULT_SYSTEMS)
    assert [system.classify_times for system in (zero_shot, one, two, rb_ft)] == [0, 1, 2, 1]
    assert [system.rationales for system in (zero_shot, one, two, rb_ft)] == [None, None, None, "own"]


def test_a_number_of_labels_is_part_of_the_name() -> None:
    system = parse_system("rb-ft-unlabelled@64")
    assert (system.name, system.family, system.num_labels) == ("rb-ft-unlabelled@64", "rb-ft-unlabelled", 64)
    assert system.unlabelled_too and system.rationales == "own"
    assert all(parse_system(family).num_labels is None for family in FAMILIES)


@pytest.mark.parametrize("name", ["rbft", "rb-ft@", "rb-ft@0", "rb-ft@-4", "RB-FT", "rb-ft@64@64", ""])
def test_other_names_are_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(ValueError, match=r"no system is called .* there are zero-shot, direct-sft-1"):
        parse_system(name)


def test_zero_shot_learns_from_no_labels() -> None:
    with pytest.raises(ValueError, match="learns from no labels"):
        parse_system("zero-shot@64")
