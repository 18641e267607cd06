"""What one stage of fine-tuning is, apart from how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rbft.config import ModelConfig, OptimiserConfig, TrainingConfig, VideoConfig
from rbft.task import Task


@dataclass(frozen=True)
class StageSpec:
    """What one stage trains, from what, into what."""

    name: str
    """For people: "rb-ft/rationale"."""
    folder: str
    """Where checkpoints, logs and `final/` go; a disk all workers share."""
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
