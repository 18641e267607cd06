"""A classification task: labels, persona, dimensions and the prompts made of them. Pure text in, messages out.

Covered: the task file, the rationale prompt P (paper 3, "Rationale Generation"), the classification question, reading sections and
labels back out of text. Not covered: how messages become token ids (`rbft.models.chat`).
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Message = dict[str, Any]
"""A chat message in the transformers form: {"role": ..., "content": [{"type": "video"}, {"type": "text", "text": ...}]}."""


class Dimension(BaseModel):
    """One heading of a rationale and what belongs under it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heading: str
    """As it stands before the colon, e.g. "Subjects"."""
    describe: str
    """What the model should write there, e.g. "the main people, animals and vehicles"."""


class Task(BaseModel):
    """What is classified and how it is asked. Frozen; loaded from a task file and kept in every model folder made for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    labels: tuple[str, ...] = Field(min_length=2)
    """Plain lowercase words, the one source of truth for the answer's text (readings, 11)."""
    persona: str
    """Who the model is asked to be, e.g. "smart home security expert" (paper 3)."""
    dimensions: tuple[Dimension, ...] = Field(min_length=1)
    question: str
    """The stage-2 query; must let a reader know the labels."""
    label_aliases: dict[str, str] = Field(default_factory=dict)
    """Annotation value -> label, for data whose labels are written otherwise ("Vague Abnormal" -> abnormal)."""

    @model_validator(mode="after")
    def _labels_are_plain_and_distinct(self) -> Task:
        for label in self.labels:
            if label != label.strip().lower() or not label:
                raise ValueError(f"label {label!r} must be plain lowercase words; write {label.strip().lower()!r}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must be distinct, got {list(self.labels)}")
        unknown = sorted(set(self.label_aliases.values()) - set(self.labels))
        if unknown:
            raise ValueError(f"label_aliases point to {unknown}, which are not labels; labels are {list(self.labels)}")
        return self

    @cached_property
    def rationale_prompt(self) -> str:
        """P_rationale: persona, then the dimensions as headings (paper 3; readings, 6)."""
        headings = "\n".join(f"{dimension.heading}: {dimension.describe}" for dimension in self.dimensions)
        article = "an" if self.persona[0].lower() in "aeiou" else "a"
        return f"You are {article} {self.persona}. Describe the video under these headings, in this order.\n{headings}"

    def rationale_messages(self, context: str | None = None) -> list[Message]:
        """The conversation that asks for a rationale; also the stage-1 instruction (readings, 7)."""
        return _ask(self.rationale_prompt, context)

    def question_messages(self, context: str | None = None) -> list[Message]:
        """The conversation that asks for a label; also the stage-2 instruction."""
        return _ask(self.question, context)

    def normalise_label(self, value: str) -> str | None:
        """The task's label that the annotation `value` stands for, or None if it stands for none."""
        if value in self.label_aliases:
            return self.label_aliases[value]
        plain = value.strip().lower()
        aliases = {alias.strip().lower(): label for alias, label in self.label_aliases.items()}
        return plain if plain in self.labels else aliases.get(plain)

    def parse_label(self, text: str) -> str | None:
        """The one label that `text` names as a whole word, or None if it names none or several (readings, 12).

        Where one label is part of another ("normal" in "not normal"), the longest match counts.
        """
        alternatives = "|".join(re.escape(label) for label in sorted(self.labels, key=len, reverse=True))
        named = set(re.findall(rf"(?<![\w-])({alternatives})(?![\w-])", text.lower()))
        return named.pop() if len(named) == 1 else None

    def parse_sections(self, text: str) -> dict[str, str]:
        """Heading -> text below it, for the task's headings that begin a line of `text`, in the order they appear."""
        headings = "|".join(re.escape(dimension.heading) for dimension in self.dimensions)
        parts = re.split(rf"(?m)^\s*[*#\s]*({headings})[*\s]*:[*]*\s*", text)
        return {heading: body.strip() for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


def _ask(prompt: str, context: str | None) -> list[Message]:
    # The video comes first, so that every prompt about a video shares its prefix and the engine's prefix cache holds it once.
    text = prompt if not context else f"{context.strip()}\n\n{prompt}"
    return [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
