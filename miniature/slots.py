"""Reading slots back out of a rationale, and counting how many are right."""

from __future__ import annotations

import re
from collections.abc import Sequence

from miniature.world import ACTIONS, COLOURS, SCENES, SUBJECTS, Slots

_VALUES = {"subject": SUBJECTS, "attribute": COLOURS, "action": ACTIONS, "scene": SCENES}
_HEADINGS = {"subject": "Subjects", "attribute": "Attributes", "action": "Actions", "scene": "Scenes"}
SLOT_NAMES = tuple(_VALUES)


def parse(text: str) -> dict[str, str | None]:
    """Slot name -> the value that its section of `text` names; None where it names none, or the section is missing.

    Of several values the last counts, as in "goes from left to right".
    """
    found: dict[str, str | None] = {}
    for name, heading in _HEADINGS.items():
        section = re.search(rf"(?m)^\s*{heading}:(.*)$", text)
        words = re.findall(r"[a-z]+", section.group(1).lower()) if section else []
        named = [word for word in words if word in _VALUES[name]]
        found[name] = named[-1] if named else None
    return found


def score(texts: Sequence[str], truth: Sequence[Slots]) -> dict[str, float]:
    """Share of clips whose slot is named rightly, by slot name, and "overall": the mean over the four."""
    parsed = [parse(text) for text in texts]
    shares = {name: sum(p[name] == getattr(t, name) for p, t in zip(parsed, truth, strict=True)) / len(truth) for name in SLOT_NAMES}
    return {**shares, "overall": sum(shares.values()) / len(SLOT_NAMES)}
