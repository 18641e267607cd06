"""What the training of one video classifier is, apart from how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rbft.config import TrainingConfig, VideoClassifierConfig, VideoConfig
from rbft.task import Task


@dataclass(frozen=True)
class ClassifierSpec:
    """What is trained, from what, into what."""

    name: str
    """For people: that of the configuration."""
    folder: str
    """Where checkpoints, logs and `final/` are written; a disk all workers share."""
    fingerprint: str
    classifier: VideoClassifierConfig
    task: Task
    video: VideoConfig
    """Its decoder and limits; how many frames and how large, the model says."""
    training: TrainingConfig
    """`VideoClassifierConfig.training`."""
    seed: int
    max_bad_fraction: float
    lineage: dict[str, Any]
    classes: tuple[str | None, ...] = ()
    """Of each item, where classes are to stand in an epoch equally often; empty: every item once."""
    store: str | None = None
    """As `StageSpec.store`."""

    @property
    def home(self) -> str:
        """Where the model is found afterwards, from any node."""
        return self.store or self.folder
