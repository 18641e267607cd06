"""Where the videos come from, and how they become frames."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rbft.config.section import Section
from rbft.records import SPLITS, VideoSpec

DEFAULT_FRACTIONS = {"train": 0.8, "test": 0.2}
"""Readings, 17."""


class DataConfig(Section):
    """Where the videos and labels come from. Exactly one of `manifest`, `annotations`, `folder`, `smarthome`, `multihateclip`."""

    manifest: str | None = None
    """A manifest.parquet made by `rbft import`, or by hand to the schema of `rbft.records.manifest_schema`."""
    annotations: str | None = None
    """A CSV, TSV, JSONL or Parquet file, one row a video."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Manifest field -> column of `annotations`, where the names differ."""
    folder: str | None = None
    """A folder with one sub-folder a class."""
    smarthome: str | None = None
    """The folder with the SmartHome annotation files, or one of those."""
    multihateclip: str | None = None
    """The folder with the MultiHateClip TSVs, and text.json for `with_text`."""
    with_text: bool = False
    """MultiHateClip: put title and transcript before the prompt (beyond the paper: readings, 19)."""
    video_root: str | None = None
    """What relative video paths are relative to; by default the folder of the annotation file."""
    split_file: str | None = None
    """A published split: ids by split (readings, 17). Wins over fractions."""
    fractions: dict[str, float] = Field(default_factory=lambda: dict(DEFAULT_FRACTIONS))
    """Used where the data carries no split (readings, 17: stratified, seeded 80/20)."""
    title: str | None = None
    """What the data are called in print; by default the run's name."""
    max_bad_fraction: float = Field(0.05, ge=0, le=1)
    """A job with a larger share of unusable videos fails at its end, with the list."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        sources = [name for name in ("manifest", "annotations", "folder", "smarthome", "multihateclip") if getattr(self, name)]
        if len(sources) != 1:
            raise ValueError(f"give exactly one of manifest, annotations, folder, smarthome, multihateclip; got {sources or 'none'}")
        if self.columns and not self.annotations:
            raise ValueError("columns says how to read annotations, and none are given; remove it or give annotations")
        if self.with_text and not self.multihateclip:
            raise ValueError("with_text is about multihateclip, which is not given; remove it")
        if self.folder and self.video_root:
            raise ValueError("video_root has no meaning beside folder, whose videos lie below it; remove one of them")
        unknown = sorted(set(self.fractions) - set(SPLITS))
        if unknown or abs(sum(self.fractions.values()) - 1) > 1e-6 or min(self.fractions.values()) < 0:
            raise ValueError(f"fractions must be of {SPLITS}, not negative, and add up to 1; got {self.fractions}")
        return self


class VideoConfig(Section):
    """How a video becomes frames, and what a decode may cost."""

    fps: float = Field(1.0, gt=0)
    """Paper 4.1: 1 FPS."""
    min_frames: int = Field(4, ge=2, multiple_of=2)
    max_frames: int = Field(128, ge=2, multiple_of=2)
    """A cap that is logged when it bites (readings, 2)."""
    max_pixels: int = Field(151_200, ge=784)
    """Area of a frame: 360 x 420, paper 4.1 (readings, 1)."""
    min_pixels: int = Field(784, ge=784)
    backend: Literal["auto", "decord", "pyav"] = "auto"
    timeout_s: float = Field(60.0, gt=0)
    """A decode that takes longer is killed and becomes an error row."""
    memory_limit_bytes: int = Field(4 << 30, ge=256 << 20)

    @model_validator(mode="after")
    def _ordered(self) -> VideoConfig:
        if self.min_frames > self.max_frames or self.min_pixels > self.max_pixels:
            raise ValueError("min_frames and min_pixels must not be larger than max_frames and max_pixels")
        return self

    def spec(self) -> VideoSpec:
        """The part that determines frames, and therefore fingerprints."""
        names = ("fps", "min_frames", "max_frames", "max_pixels", "min_pixels", "backend")
        return VideoSpec(**{name: getattr(self, name) for name in names})
