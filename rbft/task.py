"""A classification task: labels, persona, dimensions and the prompts made of them. Pure text in, messages out.

Covered: the task file, the rationale prompt P (paper 3, "Rationale Generation"), the classification question, reading sections and
labels back out of text. Not covered: how messages become token ids (`rbft.models.chat`).
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Message = dict[str, Any]
"""A chat message in the transformers form: {"role": ..., "content": [{"type": "video"}, {"type": "text", "text": ...}]}."""


_Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Dimension(BaseModel):
    """One heading of a rationale and what belongs under it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heading: _Words
    """As it stands before the colon, e.g. "Subjects"."""
    describe: _Words
    """What the model should write there, e.g. "the main people, animals and vehicles"."""


class Task(BaseModel):
    """What is classified and how it is asked. Frozen; loaded from a task file and kept in every model folder made for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: _Words
    labels: tuple[str, ...] = Field(min_length=2)
    """Plain lowercase words, the one source of truth for the answer's text (readings, 11)."""
    persona: _Words
    """Who the model is asked to be, e.g. "smart home security expert" (paper 3)."""
    dimensions: tuple[Dimension, ...] = Field(min_length=1)
    question: _Words
    """The stage-2 query; must let a reader know the labels."""
    concern_labels: tuple[str, ...] = ()
    """Labels that say something is wrong. A rationale that denies any concern about such a video contradicts its label."""
    label_aliases: dict[str, str] = Field(default_factory=dict)
    """Annotation value -> label, for data whose labels are written otherwise ("Vague Abnormal" -> abnormal)."""

    @model_validator(mode="after")
    def _labels_are_plain_and_distinct(self) -> Task:
        for label in self.labels:
            plain = _plain(label)
            if not plain:
                raise ValueError("a label is empty; write lowercase words")
            if label != plain:
                raise ValueError(f"label {label!r} must be plain lowercase words; write {plain!r}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must be distinct, got {list(self.labels)}")
        if strangers := sorted(set(self.concern_labels) - set(self.labels)):
            raise ValueError(f"concern_labels names {strangers}, which are not labels; labels are {list(self.labels)}")
        unknown = sorted(set(self.label_aliases.values()) - set(self.labels))
        if unknown:
            raise ValueError(f"label_aliases point to {unknown}, which are not labels; labels are {list(self.labels)}")
        meanings: dict[str, str] = {label: label for label in self.labels}
        for alias, label in self.label_aliases.items():
            if meanings.setdefault(_plain(alias), label) != label:
                raise ValueError(f"label_aliases: {alias!r} stands for {label!r} and for {meanings[_plain(alias)]!r}; keep one")
        return self

    @model_validator(mode="after")
    def _headings_are_distinct(self) -> Task:
        headings = [dimension.heading.lower() for dimension in self.dimensions]
        if len(set(headings)) != len(headings):
            raise ValueError(f"headings of dimensions must be distinct, got {[dimension.heading for dimension in self.dimensions]}")
        return self

    @property
    def rationale_prompt(self) -> str:
        """P_rationale: persona, then the dimensions as headings (paper 3; readings, 6)."""
        headings = "\n".join(f"{dimension.heading}: {dimension.describe}" for dimension in self.dimensions)
        article = "an" if self.persona[0].lower() in "aeiou" else "a"
        return f"You are {article} {self.persona}. Describe the video under these headings, in this order.\n{headings}"

    def rationale_messages(self, context: str | None = None) -> list[Message]:
        """The conversation that asks for a rationale; also the stage-1 instruction (readings, 7)."""
        return _ask(self.rationale_prompt, context)

    def hinted_rationale_messages(self, label: str, context: str | None = None) -> list[Message]:
        """`rationale_messages` with the label as a hint, at the end, so that the video before it is the same to a prefix cache."""
        hint = f"Experts have labelled this video {label!r}. Describe what in it shows that; do not write the label itself."
        return _ask(f"{self.rationale_prompt}\n{hint}", context)

    def question_messages(self, context: str | None = None) -> list[Message]:
        """The conversation that asks for a label; also the stage-2 instruction."""
        return _ask(self.question, context)

    def normalise_label(self, value: str) -> str | None:
        """The task's label that the annotation `value` stands for, or None if it stands for none. Case and space do not matter."""
        meanings = {_plain(alias): label for alias, label in self.label_aliases.items()} | {label: label for label in self.labels}
        return meanings.get(_plain(value))

    def parse_label(self, text: str) -> str | None:
        """The one label that `text` names as a whole word, or None if it names none, several, or one only to deny it (readings, 12).

        Where one label is part of another ("normal" in "not normal"), the longest match counts.
        """
        by_length = sorted(self.labels, key=len, reverse=True)
        alternatives = "|".join(r"\s+".join(map(re.escape, label.split())) for label in by_length)
        text = text.lower()
        found = list(re.finditer(rf"(?<![\w-])(?:{alternatives})(?![\w-])", text))
        named = {_plain(match[0]) for match in found}
        is_denied = any(_DENIAL.search(text[: match.start()]) for match in found)
        return named.pop() if len(named) == 1 and not is_denied else None

    def parse_sections(self, text: str) -> dict[str, str]:
        """Heading -> text below it, for the task's headings that begin a line of `text`, in the order they appear.

        A heading ends with a colon or its line; list markers, markdown emphasis and case around it do not matter ("**1. subjects**:").
        What stands under a heading that comes again is added to it.
        """
        headings = {dimension.heading.lower(): dimension.heading for dimension in self.dimensions}
        alternatives = "|".join(map(re.escape, headings))
        parts = re.split(rf"(?im)^{_MARK}({alternatives})[*_ \t]*(?::[*_]*|$)", text)
        sections: dict[str, str] = {}
        for found, body in zip(parts[1::2], parts[2::2], strict=True):
            heading = headings[found.lower()]
            sections[heading] = "\n".join(part for part in (sections.get(heading), body.strip()) if part)
        return sections


_DENIAL = re.compile(r"(?<![\w-])(?:not|never|neither|nor|no|non|nothing|isn't|isn’t)\s+(?:an?\s+)?$")
"""What stands right before a label that is named but not given: "not abnormal"."""

_MARK = r"[ \t]*(?:[-+•>#*_ \t]|\(?\d{1,2}[.)])*"
"""What may stand before a heading: list markers, numbers, markdown's # and emphasis."""


def _plain(words: str) -> str:
    return " ".join(words.lower().split())


def _ask(prompt: str, context: str | None) -> list[Message]:
    # The video comes first, so that every prompt about a video shares its prefix and the engine's prefix cache holds it once.
    text = prompt if not context else f"{context.strip()}\n\n{prompt}"
    return [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
