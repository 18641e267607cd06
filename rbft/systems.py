"""The systems a run can train and compare, by name. One name says all that tells a system from the others of the same run.

    zero-shot               the base model as it is
    direct-sft-1, -2        labels only: the paper's Direct-SFT, and the same with twice the epochs (RB-FT's budget)
    rb-ft                   stage 1 on the model's own rationales, stage 2 on the labels: the paper's method
    rb-ft-shuffled          control: stage 1 on rationales of other videos; what is left is format and compute
    rb-ft-human             ceiling: stage 1 on the manifest's human text instead of the model's
    rb-ft-unlabelled        beyond the paper: stage 1 also takes the training videos without a label (readings, 10)
    <any that learns>@N     with the labels of N training videos only, the same N for all systems: a label curve

With `@N` stage 1 sees the same N videos (as in the paper), except for `rb-ft-unlabelled@N`, where it sees all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import AfterValidator

RationaleSource = Literal["own", "shuffled", "human"]


@dataclass(frozen=True)
class System:
    """What a system's name means."""

    name: str
    family: str
    """The name without "@N"."""
    rationales: RationaleSource | None = None
    """Stage 1's answers; None for a system without stage 1."""
    unlabelled_too: bool = False
    """Whether stage 1 takes the training videos whose label the system is not told."""
    classify_times: int = 0
    """Stage 2's epochs, in multiples of `training.classify_epochs`; 0 for a system that is not trained."""
    num_labels: int | None = None
    """Labelled training videos it is told of; None for all."""


_FAMILIES = {
    system.name: system
    for system in (
        System("zero-shot", "zero-shot"),
        System("direct-sft-1", "direct-sft-1", classify_times=1),
        System("direct-sft-2", "direct-sft-2", classify_times=2),
        System("rb-ft", "rb-ft", rationales="own", classify_times=1),
        System("rb-ft-shuffled", "rb-ft-shuffled", rationales="shuffled", classify_times=1),
        System("rb-ft-human", "rb-ft-human", rationales="human", classify_times=1),
        System("rb-ft-unlabelled", "rb-ft-unlabelled", rationales="own", unlabelled_too=True, classify_times=1),
    )
}
FAMILIES = tuple(_FAMILIES)
DEFAULT_SYSTEMS = ("zero-shot", "direct-sft-1", "direct-sft-2", "rb-ft")
"""The paper's comparison."""


def parse_system(name: str) -> System:
    """The system called `name`; raises `ValueError` for a name that means none."""
    found = re.fullmatch(r"([a-z0-9-]+)(?:@([1-9][0-9]*))?", name)
    family = _FAMILIES.get(found[1]) if found else None
    if found is None or family is None:
        raise ValueError(f"no system is called {name!r}; there are {', '.join(FAMILIES)}, and each that learns also with @N labels")
    if found[2] is None:
        return family
    if not family.classify_times:
        raise ValueError(f"{name!r}: {family.name} learns from no labels; leave @{found[2]} out")
    return replace(family, name=name, num_labels=int(found[2]))


def parse_systems(names: Iterable[str]) -> list[System]:
    return [parse_system(name) for name in names]


def _checked(name: str) -> str:
    return parse_system(name).name


SystemName = Annotated[str, AfterValidator(_checked)]
"""A system's name as a field of a configuration."""
