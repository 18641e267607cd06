"""The systems a run can train and compare, by name. One name says all that tells a system from the others of the same run.

    zero-shot               the base model as it is
    direct-sft-1, -2        labels only: the paper's Direct-SFT, and the same with twice the epochs (RB-FT's budget)
    rb-ft                   stage 1 on the model's own rationales, stage 2 on the labels: the paper's method
    rb-ft-shuffled          control: stage 1 on rationales of other videos; what is left is format and compute
    rb-ft-human             ceiling: stage 1 on the manifest's human text instead of the model's
    rb-ft-mix-P             Table 4: stage 1 on the model's own rationale for P % of the videos, on human text for the rest (readings, 15)
    rb-ft-part-P            beyond the paper: the same P %, and stage 1 does not see the rest
    rb-ft-label-first       Table 3, P+C+R: stage 1 on the label, then the rationale (readings, 14)
    rb-ft-label-last        Table 3, P+R+C: on the rationale, then the label
    rb-ft-unlabelled        beyond the paper: stage 1 also takes the training videos without a label (readings, 10)
    <any that learns>@N     with the labels of N training videos only, the same N for all systems: a label curve

With `@N` stage 1 sees the same N videos (as in the paper), except for `rb-ft-unlabelled@N`, where it sees all. The P % are drawn by the
run's seed; those of a smaller P are among those of a larger one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import AfterValidator

RationaleSource = Literal["own", "shuffled", "human"]
TargetFormat = Literal["rationale", "label-first", "label-last"]


@dataclass(frozen=True)
class System:
    """What a system's name means."""

    name: str
    family: str
    """The name without "-P" and "@N"."""
    rationales: RationaleSource | None = None
    """Where stage 1's texts come from; None for a system without stage 1."""
    own_percent: int = 100
    """For how many of the videos it is that source, for the rest `rest`."""
    rest: Literal["human", "none"] = "none"
    """Human text, or nothing: stage 1 leaves those videos out."""
    target: TargetFormat = "rationale"
    """What stage 1 teaches to answer: the text alone, or with the label before or after it."""
    unlabelled_too: bool = False
    """Whether stage 1 takes the training videos whose label the system is not told."""
    classify_times: int = 0
    """Stage 2's epochs, in multiples of `training.classify_epochs`; 0 for a system that is not trained."""
    num_labels: int | None = None
    """Labelled training videos it is told of; None for all."""

    def num_own(self, num_videos: int) -> int:
        """For how many of stage 1's videos the text comes from `rationales`, to the nearest."""
        return (num_videos * self.own_percent + 50) // 100


_FAMILIES = {
    system.name: system
    for system in (
        System("zero-shot", "zero-shot"),
        System("direct-sft-1", "direct-sft-1", classify_times=1),
        System("direct-sft-2", "direct-sft-2", classify_times=2),
        System("rb-ft", "rb-ft", rationales="own", classify_times=1),
        System("rb-ft-shuffled", "rb-ft-shuffled", rationales="shuffled", classify_times=1),
        System("rb-ft-human", "rb-ft-human", rationales="human", classify_times=1),
        System("rb-ft-mix", "rb-ft-mix", rationales="own", rest="human", classify_times=1),
        System("rb-ft-part", "rb-ft-part", rationales="own", rest="none", classify_times=1),
        System("rb-ft-label-first", "rb-ft-label-first", rationales="own", target="label-first", classify_times=1),
        System("rb-ft-label-last", "rb-ft-label-last", rationales="own", target="label-last", classify_times=1),
        System("rb-ft-unlabelled", "rb-ft-unlabelled", rationales="own", unlabelled_too=True, classify_times=1),
    )
}
FAMILIES = tuple(_FAMILIES)
_WITH_PERCENT = ("rb-ft-mix", "rb-ft-part")
DEFAULT_SYSTEMS = ("zero-shot", "direct-sft-1", "direct-sft-2", "rb-ft")
"""The paper's comparison."""


def parse_system(name: str) -> System:
    """The system called `name`; raises `ValueError` for a name that means none."""
    found = re.fullmatch(rf"({'|'.join(sorted(FAMILIES, key=len, reverse=True))})(?:-([1-9][0-9]?))?(?:@([1-9][0-9]*))?", name)
    takes_percent = found is not None and found[1] in _WITH_PERCENT
    if found is None or takes_percent != (found[2] is not None):
        names = ", ".join(f"{family}-P" if family in _WITH_PERCENT else family for family in FAMILIES)
        raise ValueError(f"no system is called {name!r}; there are {names} (P from 1 to 99), and each that learns also with @N labels")
    system = _FAMILIES[found[1]]
    if found[3] and not system.classify_times:
        raise ValueError(f"{name!r}: {system.name} learns from no labels; leave @{found[3]} out")
    return replace(
        system, name=name, own_percent=int(found[2] or system.own_percent), num_labels=int(found[3]) if found[3] else system.num_labels
    )


MaskKind = Literal["object", "random"]
"""What masks hide: objects, or as much at random places (paper, Table 5)."""
MASK_KINDS: tuple[MaskKind, ...] = ("random", "object")


def behind_masks(system: str, kind: MaskKind) -> str:
    """What `system` is called when it sees every video behind masks: "rb-ft+object-masks". Such a name is never one of a configuration."""
    return f"{system}+{kind}-masks"


def split_masks(name: str) -> tuple[str, MaskKind | None]:
    """The system and the masks of a name that `behind_masks` made; any other name is itself, without masks."""
    system, _, masks = name.partition("+")
    kind = next((kind for kind in MASK_KINDS if masks == f"{kind}-masks"), None)
    return (name, None) if kind is None else (system, kind)


def parse_systems(names: Iterable[str]) -> list[System]:
    return [parse_system(name) for name in names]


def _checked(name: str) -> str:
    return parse_system(name).name


SystemName = Annotated[str, AfterValidator(_checked)]
"""A system's name as a field of a configuration."""
