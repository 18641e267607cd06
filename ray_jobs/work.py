"""What engines are asked to do: videos, what to ask of which model, and where the rows go."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from rbft.config import GatesConfig, ModelConfig
from rbft.records import Example
from rbft.systems import MaskKind
from rbft.task import Task

Kind = Literal["rationale", "prediction"]
EngineName = Literal["vllm", "hf", "openai"]
"""vLLM, plain transformers, or the server of `teacher.server`."""


_MODELS: dict[str, type[BaseModel]] = {"model": ModelConfig, "task": Task, "gates": GatesConfig}


@dataclass(frozen=True)
class Work:
    """Videos to be asked the same thing of the same model, and the folder their rows go to."""

    kind: Kind
    folder: str
    examples: Sequence[Example]
    model: ModelConfig
    task: Task
    provenance: dict[str, Any]
    gates: GatesConfig
    """Which of its rationales are drawn again."""
    mask: MaskKind | None = field(default=None, kw_only=True)
    """What hides parts of the clips, as `evaluation.masking` says."""


@dataclass(frozen=True)
class Block(Work):
    """As much of some work as one actor takes at a time; the unit of resume."""

    job: str
    """Of the job that made it, for the notes on attempts."""
    is_suspect: bool
    """Whether engines died with these videos in them when an earlier job asked."""

    @property
    def ids(self) -> list[str]:
        return [example.id for example in self.examples]

    def dumps(self) -> bytes:
        """As it travels to an actor: a few kilobytes, as all blocks of a job wait in the object store at once."""
        plain = {name: getattr(self, name) for name in ("kind", "folder", "provenance", "job", "is_suspect", "mask")}
        models = {name: getattr(self, name).model_dump(mode="json") for name in _MODELS}
        known = [{name: value for name, value in vars(example).items() if value is not None} for example in self.examples]
        return zlib.compress(json.dumps(plain | models | {"examples": known}).encode(), level=1)

    @classmethod
    def loads(cls, content: bytes) -> Block:
        found = json.loads(zlib.decompress(content))
        models = {name: model.model_validate(found[name]) for name, model in _MODELS.items()}
        return cls(**found | models | {"examples": tuple(Example(**row) for row in found["examples"])})
