"""What one stage of fine-tuning is, apart from how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rbft.config import ModelConfig, OptimiserConfig, TrainingConfig, VideoConfig
from rbft.data.samples import TrainingItem
from rbft.task import Task

VALIDATION_FILE = "validation.json"
"""In a stage's folder: all its validations, in order."""
PROBE_FILE = "rationale_loss.json"
"""In a stage's folder: the loss of stage 1's rationales before and after it, nats a token (readings, 27)."""


@dataclass(frozen=True)
class StageSpec:
    """What one stage trains, from what, into what."""

    name: str
    """For people: "rb-ft/rationale"."""
    folder: str
    """Where checkpoints, logs and `final/` are written; a disk all workers share."""
    fingerprint: str
    model: ModelConfig
    """The model to start from."""
    task: Task
    video: VideoConfig
    training: TrainingConfig
    optimiser: OptimiserConfig
    epochs: int
    seed: int
    max_bad_fraction: float
    lineage: dict[str, Any]
    classes: tuple[str | None, ...] = ()
    """Of each item, None for one that has none, where classes are to stand in an epoch equally often; empty: every item once."""
    num_replay: int = 0
    """How many of the items, the last ones, are rationales that stage 1 learned from: each weighs as much as a label does."""
    validation: tuple[TrainingItem, ...] = ()
    """What is scored while the stage trains, as `training.validation` says; empty: nothing is."""
    held_out: tuple[TrainingItem, ...] = ()
    """Rationales that are not learned, whose loss is measured after every epoch."""
    probe: tuple[TrainingItem, ...] = ()
    """Rationales whose loss is measured before and after the stage."""
    store: str | None = None
    """Where all that lasts of `folder` is kept (`rbft.training.mirror`), for a run in a store; None: `folder` itself lasts."""

    @property
    def home(self) -> str:
        """Where the stage is found afterwards, from any node."""
        return self.store or self.folder
