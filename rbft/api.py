"""The bodies of the HTTP API, version 1: what `serve/` sends and `rbft.client` reads. One vocabulary for both ends."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Body(BaseModel):
    # A client reads answers of a newer server: fields that it does not know are left alone.
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class ModelVersion(_Body):
    """Which model answered."""

    name: str
    """`<run>/<system>`, with `/stage-1` after it of the model after stage 1; or the folder's name."""
    fingerprint: str
    """Of the model folder; changes with its weights."""


class VideoFacts(_Body):
    """What the model saw of the video."""

    num_frames: int
    fps: float
    """The rate at which frames were sampled."""
    duration_s: float
    """Of the whole file."""


class CalibrationFacts(_Body):
    """What was fitted on the validation split to make probabilities honest."""

    temperature: float
    """By which the labels' log-likelihoods are divided."""
    threshold: float | None
    """Of two labels, the probability of the task's second from which on it is answered."""
    num_clips: int
    """That it was fitted on."""


class RationaleAnswer(_Body):
    """The body of `POST /v1/rationale`, the data of its event `end`, and part of an answer to `/v1/classify` that was asked to explain."""

    text: str
    sections: dict[str, str]
    """Heading -> text, for the headings of the task that were found in `text`."""
    gates: dict[str, bool] = Field(default_factory=dict)
    """Gate of `rbft.rationales.gates` -> whether the text passes it. "agrees_with_label" holds it against the label that was answered, and
    is there only if one was."""
    finish_reason: str
    """"stop" or "length" (cut at the token limit)."""
    num_tokens: int
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    """Tokens of the prompt that the engine had already: of the same video, from classifying it if the same model does, or from explaining
    it before."""
    request_id: str = ""
    video_id: str | None = None
    """As in `ClassifyAnswer`."""
    model: ModelVersion
    """That wrote it; not the one that classifies where the service has another for rationales."""
    video: VideoFacts
    timing_s: dict[str, float] = Field(default_factory=dict)
    """Seconds by phase: receive (the body), queue, decode (of an upload), engine; total is that of the whole request."""


class ClassifyAnswer(_Body):
    """The body of `POST /v1/classify`."""

    label: str
    """The likeliest label, or what the threshold says."""
    probabilities: dict[str, float]
    """Label -> probability, the likeliest first. They sum to 1 over the task's labels, of which `top_k` may have left some out."""
    threshold: float | None = None
    """Of two labels, the probability of the task's second from which on it is answered: the request's, else the calibration's; None where
    the likeliest is."""
    calibration: CalibrationFacts | None = None
    """By which the probabilities were calibrated; None where they are the bare shares of the labels' likelihoods."""
    request_id: str = ""
    video_id: str | None = None
    """What `/v1/rationale` takes instead of a second upload, from the same key; None if the video is not kept."""
    video_expires_s: float | None = None
    """Seconds for which it is kept, at most: many other videos may take its place."""
    rationale: RationaleAnswer | None = None
    """If it was asked for."""
    rationale_problem: Problem | None = None
    """Why there is none though it was asked for: `code` "overloaded" say, where too many wait for theirs. The label stands; ask for the
    rationale alone by the `video_id`."""
    model: ModelVersion
    video: VideoFacts
    timing_s: dict[str, float] = Field(default_factory=dict)
    """Seconds by phase: receive (the body), queue, decode, engine, rationale (if asked for); total is that of the whole request."""


class RationaleStart(_Body):
    """The data of the first event (`start`) of a streamed rationale. Then come `text` events, and `end` or `problem`."""

    request_id: str
    video_id: str | None
    model: ModelVersion
    video: VideoFacts


class TextPiece(_Body):
    """The data of an event `text`: what comes after the pieces before it."""

    text: str


class Frame(_Body):
    """One of the frames that the model saw."""

    time_s: float
    """In the video."""
    uri: str
    """A JPEG as a data URI, smaller than what the model saw where that was larger than a picture on a page."""
    width: int
    height: int


class FramesAnswer(_Body):
    """The body of `POST /v1/frames`."""

    frames: tuple[Frame, ...]
    """All that were sampled, in the order of time."""
    request_id: str
    video_id: str
    timing_s: dict[str, float]
    """Seconds by phase: receive (the body), queue, encode; total is that of the whole request."""


class Heatmap(Frame):
    """A frame under its heatmap: the more yellow, the more the model looks there."""

    share: float
    """Of the attention that goes to the video, what this frame has. Frames that share a token (in Qwen2-VL, two do) share what it has."""


class AttentionAnswer(_Body):
    """The body of `POST /v1/attention`: where the model looks when it is about to say the label."""

    heatmaps: tuple[Heatmap, ...]
    """All frames that were sampled, in the order of time. The maps are scaled together, from the smallest to the largest value."""
    video_share: float
    """Of all attention, what goes to the video; the rest goes to the words of the question."""
    request_id: str = ""
    video_id: str | None = None
    """As in `ClassifyAnswer`."""
    model: ModelVersion
    video: VideoFacts
    timing_s: dict[str, float] = Field(default_factory=dict)
    """Seconds by phase: receive (the body), queue, decode (of an upload), attention; total is that of the whole request."""


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


class BatchItem(_Body):
    """What became of one file of a batch: an answer or a problem."""

    status: int
    """What it would have been answered with alone: 200, or the problem's."""
    answer: ClassifyAnswer | None = None
    """With status 200."""
    problem: Problem | None = None
    """With any other."""


class BatchAnswer(_Body):
    """The body of `POST /v1/classify/batch`."""

    items: tuple[BatchItem, ...]
    """One a file, in the order in which they were sent."""
    request_id: str = ""
    timing_s: dict[str, float] = Field(default_factory=dict)
    """Seconds: receive (the body); total is that of the whole request. Each answer has its own phases."""


class Limits(_Body):
    """What the service takes."""

    max_upload_bytes: int
    """Of the whole request body."""
    body_timeout_s: float
    """For sending it."""
    max_duration_s: float
    """Of a video."""
    max_frames: int
    """Of a video, as stored."""
    max_frame_pixels: int
    """Height x width of a frame, as stored."""
    max_context_characters: int
    max_batch_files: int = 1
    """In one request of `/v1/classify/batch`, whose body as a whole has at most `max_upload_bytes`."""
    request_timeout_s: float
    """For an answer, from the end of the body on."""
    video_kept_s: float
    """How long a `video_id` is good at most."""


class Sampled(_Body):
    """What the model is shown of a video."""

    fps: float
    """Frames a second."""
    max_frames: int
    """A longer video is sampled more thinly."""
    max_pixels: int
    """Of a frame; larger ones are scaled down."""


class TaskAnswer(_Body):
    """The body of `GET /v1/task`: what is classified, how the model is asked, and what the service takes."""

    name: str
    labels: tuple[str, ...]
    question: str
    """Asked for a label."""
    rationale_prompt: str
    """Asked for a rationale."""
    headings: tuple[str, ...]
    """Of a rationale's sections."""
    model: ModelVersion
    """That classifies, and says where it looks."""
    rationale_model: ModelVersion | None = None
    """That writes the rationales; None where `model` does."""
    calibration: CalibrationFacts | None = None
    """As in `ClassifyAnswer`."""
    lineage: dict[str, Any]
    """Where the model comes from, as its task card has it: run, system, stage, fingerprints of base model, videos and answers, seed; empty
    for a model that this project has not trained."""
    sampled: Sampled
    limits: Limits
    num_samples: int = 0
    """Sample clips that `GET /v1/samples/{number}` has, from 1 on."""
    has_attention: bool = False
    """Whether `POST /v1/attention` is offered."""
    takes_urls: bool = False
    """Whether a video may be named by its address, of hosts and storages that the service's configuration names."""


class Health(_Body):
    """The body of `GET /healthz` and `GET /readyz`."""

    status: str = "ok"
