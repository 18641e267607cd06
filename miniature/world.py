"""The world: its four slots, its rules, and how a clip of each domain is sampled. Pure sampling; pixels are `draw`'s, files are `write`'s.

`python -m miniature.world --out DIR` writes a world as mp4 files, `manifest.parquet` and `truth.parquet`.

Everything random is drawn from a generator of its own, seeded by (seed, purpose, id): a clip does not depend on how many others are made.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

T = TypeVar("T")
Domain = Literal["general", "target"]

SUBJECTS = ("person", "robot", "dog", "bird", "car", "drone")
COLOURS = ("black", "blue", "red", "green", "yellow", "white")
ACTIONS = ("still", "closer", "away", "up", "down", "circles", "right", "left")
SCENES = ("driveway", "garden", "kitchen", "porch", "hallway")

SUBJECT_GROUPS = (("person", "robot"), ("dog", "bird"), ("car", "drone"))
ACTION_GROUPS = (("still", "closer", "away"), ("up", "down", "circles"), ("right", "left"))

UNSEEN_COMBINATIONS = frozenset(
    {
        ("robot", "up"),
        ("dog", "right"),
        ("bird", "closer"),
        ("car", "down"),
    }
)
"""Subject and action that the general domain never shows together, a twelfth of the 48. The base sees other subjects in them, always the
same way, which captions do not mend: with ten of them they decided what could be learned (README)."""

LABELS = ("normal", "abnormal")
TITLE_LABELS = ("normal", "offensive", "hateful")
TITLE_LABEL_SHARES = (0.65, 0.26, 0.09)
"""About the shares of MultiHateClip."""
NORMAL_SHARE = 0.35

GENERIC_ABNORMAL_CELLS = frozenset({(0, 1), (1, 2), (2, 0)})
"""(subject group, action group) that the general domain mostly calls abnormal: half of the target's six, so they agree on 6 of 9."""
GENERIC_ABNORMAL_SHARES = {"usual": 0.05, "odd": 0.4, "very odd": 0.8}
"""How often people of the general domain call a clip abnormal: groups that match, groups that do not, `GENERIC_ABNORMAL_CELLS`."""

GENERAL_MAX_SEVERITY = 0.15

TITLES = {
    "friendly": ("a nice day at home", "look who came to visit", "my favourite moment"),
    "mocking": ("what a fool", "this is so silly", "laugh at this one"),
    "hostile": ("they should all be gone", "nobody wants them here", "get rid of these"),
}


@dataclass(frozen=True)
class Slots:
    """What a clip shows."""

    subject: str
    attribute: str
    action: str
    scene: str


@dataclass(frozen=True)
class ClipPlan:
    """All that determines a clip: `draw.render(plan)` is a pure function of it."""

    id: str
    slots: Slots
    severity: float
    """0 is a clean picture, 1 the worst camera of the target domain."""
    seed: tuple[int, ...]
    """Of the generator that places, jitters and degrades the picture."""
    domain: Domain
    """Whose cameras filmed it (`draw.CAMERAS`)."""


@dataclass(frozen=True)
class WorldClip:
    """A clip of a target world with what is known about it."""

    plan: ClipPlan
    split: str
    label: str
    human_text: str
    """A true caption in the form of a rationale (the oracle)."""
    context: str | None = None


def derived_seed(seed: int, purpose: str, key: str | int) -> tuple[int, ...]:
    """Eight 32-bit words determined by (seed, purpose, key), for `np.random.default_rng`."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{key}".encode()).digest()
    return tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4))


def subject_group(subject: str) -> int:
    return next(i for i, group in enumerate(SUBJECT_GROUPS) if subject in group)


def action_group(action: str) -> int:
    return next(i for i, group in enumerate(ACTION_GROUPS) if action in group)


def target_label(slots: Slots) -> str:
    """The target's rule: normal where the subject does what its kind does. No single slot decides it."""
    return "normal" if subject_group(slots.subject) == action_group(slots.action) else "abnormal"


def generic_abnormal_share(slots: Slots) -> float:
    """The share of "abnormal" among the answers the base model was taught for such a clip: a graded sense of what is odd."""
    cell = (subject_group(slots.subject), action_group(slots.action))
    if cell in GENERIC_ABNORMAL_CELLS:
        return GENERIC_ABNORMAL_SHARES["very odd"]
    return GENERIC_ABNORMAL_SHARES["usual" if cell[0] == cell[1] else "odd"]


def generic_label(slots: Slots) -> str:
    """What the general domain mostly says: normal more often than the target does, agreeing with it on 6 of the 9 cells of groups."""
    return "abnormal" if generic_abnormal_share(slots) > 0.5 else "normal"


def title_label(slots: Slots, tone: str) -> str:
    """The rule of the three-class task: only a clip that is odd is judged by its title's tone (a key of `TITLES`)."""
    if target_label(slots) == "normal" or tone == "friendly":
        return "normal"
    return "offensive" if tone == "mocking" else "hateful"


_CAPTION_FORMS: dict[str, dict[str, tuple[str, ...]]] = {
    "Subjects": {
        "": ("a {} is in view", "there is a {}", "the main subject is a {}"),
    },
    "Attributes": {
        "": ("its colour is {}", "it looks {}", "it is {} in colour"),
    },
    "Actions": {
        "still": ("it stands still", "it stays still in its place"),
        "closer": ("it comes closer", "it gets closer to the camera"),
        "away": ("it goes away", "it gets away from the camera"),
        "up": ("it climbs up", "it goes straight up"),
        "down": ("it falls down", "it goes straight down"),
        "circles": ("it moves in circles", "it goes round in circles"),
        "right": ("it moves to the right", "it goes from left to right"),
        "left": ("it moves to the left", "it goes from right to left"),
    },
    "Scenes": {
        "": ("this is the {}", "the place is a {}", "it happens in a {}"),
    },
}


def caption(slots: Slots, rng: np.random.Generator) -> str:
    """A true rationale about the clip: four headed lines, each in one of a few wordings; `slots.parse` reads it back."""
    lines = []
    for heading, value in zip(_CAPTION_FORMS, (slots.subject, slots.attribute, slots.action, slots.scene), strict=True):
        forms = _CAPTION_FORMS[heading]
        wording = forms[value] if value in forms else forms[""]
        lines.append(f"{heading}: {wording[int(rng.integers(len(wording)))].format(value)}.")
    return "\n".join(lines)


def all_captions() -> list[str]:
    """Every wording of every value, one line each; what a tokenizer needs to see."""
    values = dict(zip(_CAPTION_FORMS, (SUBJECTS, COLOURS, ACTIONS, SCENES), strict=True))
    return [f"{h}: {form.format(v)}." for h, forms in _CAPTION_FORMS.items() for v in values[h] for form in forms.get(v, forms.get("", ()))]


def _choice(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    return options[int(rng.integers(len(options)))]


def sample_general(seed: int, purpose: str, index: int) -> ClipPlan:
    """Clip `index` of the general domain: clean, all slots uniform over the combinations that domain shows."""
    rng = np.random.default_rng(derived_seed(seed, f"general/{purpose}", index))
    while True:
        subject, action = _choice(rng, SUBJECTS), _choice(rng, ACTIONS)
        if (subject, action) not in UNSEEN_COMBINATIONS:
            break
    slots = Slots(subject, _choice(rng, COLOURS), action, _choice(rng, SCENES))
    severity = float(rng.uniform(0, GENERAL_MAX_SEVERITY))
    return ClipPlan(f"general-{purpose}-{index:06d}", slots, severity, derived_seed(seed, f"general/{purpose}/pixels", index), "general")


def sample_target(seed: int, split: str, index: int, task: str = "miniature") -> WorldClip:
    """Clip `index` of a split of target world `seed`. The label first, then a cell of groups uniformly among those of that label.

    So neither the subject nor the action alone says much about the label, and nothing else says anything.
    `task` is "miniature" (two classes) or "miniature-titles" (three imbalanced ones, decided by the clip and its title).
    """
    key = f"{split}/{index}"
    rng = np.random.default_rng(derived_seed(seed, f"target/{task}", key))
    cells = [(i, j) for i in range(3) for j in range(3)]
    context = None
    if task == "miniature":
        normal = rng.random() < NORMAL_SHARE
        subject_kind, action_kind = _choice(rng, tuple(c for c in cells if (c[0] == c[1]) == normal))
        label = LABELS[0] if normal else LABELS[1]
    elif task == "miniature-titles":
        label = TITLE_LABELS[int(rng.choice(3, p=TITLE_LABEL_SHARES))]
        tones = {"normal": tuple(TITLES), "offensive": ("mocking",), "hateful": ("hostile",)}[label]
        fitting = [(c, t) for c in cells for t in tones if label != "normal" or c[0] == c[1] or t == "friendly"]
        fitting = [(c, t) for c, t in fitting if label == "normal" or c[0] != c[1]]
        (subject_kind, action_kind), tone = _choice(rng, tuple(fitting))
        context = f"Title: {_choice(rng, TITLES[tone])}"
    else:
        raise ValueError(f"no such miniature task: {task!r}; choose miniature or miniature-titles")
    slots = Slots(
        _choice(rng, SUBJECT_GROUPS[subject_kind]), _choice(rng, COLOURS), _choice(rng, ACTION_GROUPS[action_kind]), _choice(rng, SCENES)
    )
    severity = float(rng.uniform(0, 1))
    clip_id = f"w{seed}-{split}-{index:05d}"
    plan = ClipPlan(clip_id, slots, severity, derived_seed(seed, "target/pixels", key), "target")
    text = caption(slots, np.random.default_rng(derived_seed(seed, "target/caption", key)))
    return WorldClip(plan, split, label, text, context)


def sample_world(seed: int, sizes: dict[str, int], task: str = "miniature") -> list[WorldClip]:
    """Target world `seed`: `sizes[split]` clips of each split, in order. "unlabelled" holds training clips whose label is not told."""
    return [sample_target(seed, split, index, task) for split, size in sizes.items() for index in range(size)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m miniature.world", description="Write a world of drawn clips.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; made if missing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=128)
    parser.add_argument("--validation", type=int, default=0)
    parser.add_argument("--test", type=int, default=128)
    parser.add_argument("--unlabelled", type=int, default=0, help="further training clips without a label")
    parser.add_argument("--task", choices=("miniature", "miniature-titles"), default="miniature")
    args = parser.parse_args()

    from miniature.write import write_world

    sizes = {"train": args.train, "validation": args.validation, "test": args.test, "unlabelled": args.unlabelled}
    manifest = write_world(args.out, sample_world(args.seed, sizes, args.task))
    print(f"wrote {sum(sizes.values())} clips and {manifest}")


if __name__ == "__main__":
    main()
