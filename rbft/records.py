"""The vocabulary: what flows between the parts, and the Arrow schemas of what lies on disk.

A schema carries its name and version in its Arrow metadata (`rbft.schema`, `rbft.schema_version`); `check_schema` reads the versions
this code knows and refuses the others. Adding a nullable column keeps the version; anything else raises it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rbft.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """One row of a manifest: a video and what is known about it."""

    id: str
    uri: str
    """Where the video is: a path or a URI of any pyarrow filesystem."""
    label: str | None = None
    """One of the task's labels; None for an unlabelled video (stage 1 takes those too)."""
    split: str | None = None
    """One of `SPLITS`."""
    start_s: float | None = None
    """Seconds from the beginning at which the clip starts; None is the beginning."""
    end_s: float | None = None
    """Seconds from the beginning at which the clip ends; negative: seconds before the end of the video; None is the end."""
    human_text: str | None = None
    """A person's description of the video (paper, Table 4)."""
    context: str | None = None
    """Text that comes with the video (title, transcript) and goes into the prompt."""
    category: str | None = None
    """A grouping that is not the label, e.g. SmartHome's "Wildlife"."""
    sha256: str | None = None
    """Of the file's bytes; None where they have not been read yet."""


@dataclass(frozen=True)
class VideoSpec:
    """How a video becomes frames. Part of every fingerprint and of a model's task card."""

    fps: float = 1.0
    min_frames: int = 4
    max_frames: int = 128
    max_pixels: int = 151_200
    min_pixels: int = 784
    patch_multiple: int = 28
    """Height and width are multiples of this: the backbone's patch size x merge size (14 x 2 for Qwen2-VL and Qwen2.5-VL)."""
    backend: str = "auto"
    """"auto", "decord" or "pyav"."""


@dataclass(frozen=True)
class Clip:
    """The decoded frames of one video, ready for any consumer; the only form in which video travels between our parts."""

    frames_THWC: np.ndarray
    """uint8 RGB, [num_frames, height, width, 3]; num_frames is even; height and width are multiples of `patch_multiple`."""
    timestamps_s: tuple[float, ...]
    """Presentation time in the source file of each frame, seconds."""
    fps: float
    """The rate at which the frames were sampled, true for this clip (it differs from the asked rate for short or capped videos)."""
    source_duration_s: float
    source_fps: float
    backend: str
    """Which decoder produced it: "decord" or "pyav"."""

    @property
    def num_frames(self) -> int:
        return int(self.frames_THWC.shape[0])


@dataclass(frozen=True)
class Rationale:
    """What a model wrote about one video: one row of `rationales/*.parquet` (an error row has `error_code`, no text)."""

    id: str
    sample: int
    text: str | None = None
    sections: dict[str, str] = field(default_factory=dict)
    """Heading -> text, for the headings of the task that were found."""
    num_prompt_tokens: int | None = None
    num_tokens: int | None = None
    finish_reason: str | None = None
    """"stop" or "length"."""
    error_code: str | None = None
    error_message: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """What a system says about one video: one row of `predictions.parquet`."""

    id: str
    label: str | None
    """The true label; None where unknown."""
    predicted: str | None
    """By label likelihood; None for an error row."""
    probabilities: dict[str, float] = field(default_factory=dict)
    """Label -> probability, summing to 1 over the task's labels."""
    logprobs: dict[str, float] = field(default_factory=dict)
    """Label -> log-likelihood of its tokens and the end token, unnormalised."""
    generated: str | None = None
    """Greedy text, for the "generate" mode."""
    generated_label: str | None = None
    """The label the greedy text names by a strict whole-word parse; None where it names none or several."""
    error_code: str | None = None
    error_message: str | None = None
    masked_share: float | None = None
    """Of the clip's pixels, what was masked; 0 where nothing was found to mask, None for a system that sees videos as they are."""


def _schema(name: str, version: int, fields: list[pa.Field]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(fields, metadata={"rbft.schema": name, "rbft.schema_version": str(version)})


def manifest_schema() -> pa.Schema:
    """The Arrow schema of `manifest.parquet` (fields of `Example`)."""
    import pyarrow as pa

    text = [pa.field("id", pa.string(), nullable=False), pa.field("uri", pa.string(), nullable=False), pa.field("label", pa.string())]
    text += [pa.field("split", pa.string()), pa.field("start_s", pa.float64()), pa.field("end_s", pa.float64())]
    text += [pa.field(name, pa.string()) for name in ("human_text", "context", "category", "sha256")]
    return _schema("manifest", 1, text)


def rationale_schema() -> pa.Schema:
    """The Arrow schema of `rationales/<fingerprint>/*.parquet` (fields of `Rationale`; `sections` and `provenance` as JSON text)."""
    import pyarrow as pa

    fields = [pa.field("id", pa.string(), nullable=False), pa.field("sample", pa.int32(), nullable=False), pa.field("text", pa.string())]
    fields += [pa.field("sections", pa.string()), pa.field("num_prompt_tokens", pa.int32()), pa.field("num_tokens", pa.int32())]
    fields += [pa.field(name, pa.string()) for name in ("finish_reason", "error_code", "error_message", "provenance")]
    return _schema("rationales", 1, fields)


def prediction_schema(*, masked: bool = False) -> pa.Schema:
    """The Arrow schema of `evaluation/<system>/predictions.parquet` (fields of `Prediction`; the two maps as JSON text).

    Only systems that see videos behind masks have `masked_share`, and readers of the others need not know it.
    """
    import pyarrow as pa

    names = ("label", "predicted", "probabilities", "logprobs", "generated", "generated_label", "error_code", "error_message")
    fields = [pa.field("id", pa.string(), nullable=False), *(pa.field(name, pa.string()) for name in names)]
    return _schema("predictions", 1, [*fields, *([pa.field("masked_share", pa.float64())] if masked else [])])


def check_schema(found: pa.Schema, expected: pa.Schema, where: str) -> None:
    """Raise `ArtifactError` naming `where` if `found` is of another name or version than `expected`, or lacks one of its columns."""
    metadata, wanted = found.metadata or {}, expected.metadata or {}
    name, version = (metadata.get(key, b"?").decode() for key in (b"rbft.schema", b"rbft.schema_version"))
    expected_name, expected_version = (wanted[key].decode() for key in (b"rbft.schema", b"rbft.schema_version"))
    if (name, version) != (expected_name, expected_version):
        raise ArtifactError(
            f"{where}: holds schema {name} version {version}, this code reads {expected_name} version {expected_version}; "
            "make it again with this version of rbft"
        )
    missing = [column for column in expected.names if column not in found.names]
    if missing:
        raise ArtifactError(f"{where}: lacks the column(s) {', '.join(missing)} of schema {name} version {version}; make it again")
