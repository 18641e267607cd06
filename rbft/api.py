"""The bodies of the HTTP API, version 1: what `serve/` sends and `rbft.client` reads. One vocabulary for both ends."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Body(BaseModel):
    # A client reads answers of a newer server: fields that it does not know are left alone.
    model_config = ConfigDict(frozen=True, extra="ignore")


class ModelVersion(_Body):
    """Which model answered."""

    name: str
    """`<run>/<system>`, or the folder's name."""
    fingerprint: str
    """Of the model folder; changes with its weights."""


class VideoFacts(_Body):
    """What the model saw of the video."""

    num_frames: int
    fps: float
    """The rate at which frames were sampled."""
    duration_s: float
    """Of the whole file."""


class ClassifyAnswer(_Body):
    """The body of `POST /v1/classify`."""

    label: str
    """The likeliest label."""
    probabilities: dict[str, float]
    """Label -> probability, summing to 1 over the task's labels."""
    model: ModelVersion
    video: VideoFacts
    timing_s: dict[str, float] = Field(default_factory=dict)
    """Seconds by phase: queue, decode, engine, total."""


class RationaleAnswer(_Body):
    """The body of `POST /v1/rationale`."""

    text: str
    sections: dict[str, str]
    """Heading -> text, for the headings of the task that were found in `text`."""
    finish_reason: str
    """"stop" or "length" (cut at the token limit)."""
    num_tokens: int
    model: ModelVersion
    video: VideoFacts
    timing_s: dict[str, float] = Field(default_factory=dict)
    """Seconds by phase: queue, decode, engine, total."""


class Limits(_Body):
    """What the service takes."""

    max_upload_bytes: int
    """Of the whole request body."""
    max_context_characters: int
    request_timeout_s: float


class TaskAnswer(_Body):
    """The body of `GET /v1/task`: what is classified, how the model is asked, and what the service takes."""

    name: str
    labels: tuple[str, ...]
    question: str
    """Asked for a label."""
    rationale_prompt: str
    """Asked for a rationale."""
    model: ModelVersion
    limits: Limits


class Health(_Body):
    """The body of `GET /healthz` and `GET /readyz`."""

    status: str = "ok"


class Problem(_Body):
    """The body of every error (RFC 9457, application/problem+json)."""

    type: str = "about:blank"
    title: str
    """The HTTP status in words."""
    status: int
    detail: str
    """What is wrong and what to do, on one line."""
    code: str
    """An error code of `rbft.errors`, for machines."""
