"""What a plan says: the steps of a run, how often and how large."""

from __future__ import annotations

from dataclasses import dataclass

from rbft.config import OptimiserConfig, RunConfig
from rbft.models.shape import ModelShape
from rbft.training.memory import Remedy, TrainingMemory


@dataclass(frozen=True)
class Range:
    """A number for the typical sample and for the largest there can be."""

    typical: int
    most: int

    def __add__(self, other: Range) -> Range:
        return Range(self.typical + other.typical, self.most + other.most)


@dataclass(frozen=True)
class SampleTokens:
    """Tokens of one sample."""

    prompt: Range
    """With the video's context, without the video."""
    video: Range
    answer: int
    """At most."""

    @property
    def total(self) -> Range:
        return self.prompt + self.video + Range(self.answer, self.answer)


@dataclass(frozen=True)
class InferenceStep:
    """Generation, or the evaluation of all systems."""

    name: str
    num_videos: int | None
    num_passes: int
    """How often each video is seen: once for generation, once a system for evaluation."""
    engine: str
    """"vllm", "hf", or "openai" (a server)."""
    num_engines: int
    gpus_per_engine: float
    tokens: SampleTokens


@dataclass(frozen=True)
class TrainingStep:
    """One stage of one system."""

    name: str
    num_samples: int | None
    epochs: int
    num_steps: int | None
    """Optimiser steps."""
    optimiser: OptimiserConfig
    tokens: SampleTokens
    memory: tuple[TrainingMemory, TrainingMemory] | None
    """On one worker, with samples of typical and of largest size; None where the model's shape is unknown."""
    remedies: tuple[Remedy, ...] = ()
    """What to change where the largest samples do not fit the GPU, each on top of those before it, up to the first that makes them fit."""


@dataclass(frozen=True)
class Plan:
    """What `build_plan` found."""

    config: RunConfig
    counts: dict[str, dict[str, int]] | None
    """Split -> label -> videos ("unlabelled" for those without); None where the data cannot be read."""
    shape: ModelShape | None
    video_source: str
    """Where the typical video comes from, in words."""
    steps: tuple[InferenceStep | TrainingStep, ...]
    notes: tuple[str, ...]
    """What is unknown or looks wrong, one line each."""
    gpu_memory_bytes: int | None = None
    """What a training GPU has; None where that is unknown, and on CPU."""
