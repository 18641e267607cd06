"""A run with rationales of real clips, made without an engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rbft import rows, storage
from rbft.config import RunConfig, load_config
from rbft.data.manifest import write_manifest
from rbft.layout import RunLayout
from rbft.rationales.table import rationales_table
from rbft.records import Example, Rationale, rationale_schema
from rbft.review.reviewer import Reviewer
from rbft.video.pool import DecodePool
from tests.samples import write_video

GOOD = "Subjects: there is a {}.\nAttributes: it looks {}.\nActions: it climbs {}.\nScenes: this is the {}."
FOUND = [
    Rationale("good/1", 0, GOOD.format("dog", "red", "up", "porch"), finish_reason="stop"),
    Rationale("sorry", 0, 'I am sorry, "I cannot" see, or say,\nwhat is normal.', finish_reason="length"),
    Rationale("broken", 0, GOOD.format("robot", "blue", "down", "kitchen"), finish_reason="stop"),
    Rationale("gone", 0, GOOD.format("car", "green", "away", "street"), finish_reason="length"),
    Rationale("error", 0, error_code="video_decode", error_message="cut short"),
]
LABELS = {"good/1": "normal", "sorry": "abnormal", "broken": "abnormal", "gone": None, "error": "normal"}


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Id -> file; that of "broken" is cut short, that of "gone" does not exist."""
    folder = tmp_path_factory.mktemp("clips")
    good = write_video(folder / "good.mp4")
    (folder / "broken.mp4").write_bytes(good.read_bytes()[:200])
    names = {"good/1": good, "sorry": write_video(folder / "sorry.mp4", seed=1), "error": folder / "broken.mp4"}
    return names | {"broken": folder / "broken.mp4", "gone": folder / "gone.mp4"}


@pytest.fixture
def config(repository: Path, tmp_path: Path, clips: dict[str, Path]) -> RunConfig:
    """A run with complete rationales and a manifest."""
    config = load_config(str(repository / "configs/miniature.yaml"), [f"output_dir={tmp_path}"])
    layout = RunLayout(config.run_dir)
    folder = layout.rationales("0123")
    write_manifest([Example(row.id, str(clips[row.id]), LABELS[row.id], "train") for row in FOUND], layout.manifest)
    rows.write_part(folder, rationales_table(FOUND))
    rows.finish(folder, "rationales", rationale_schema(), [row.id for row in FOUND], "0123", {})
    storage.write_json(layout.run_json, {"artifacts": {"rationales": "elsewhere/rationales/0123"}})
    return config


@pytest.fixture
def reviewer(config: RunConfig) -> Reviewer:
    return Reviewer(config, "ada")


@pytest.fixture(scope="session")
def decoders() -> Iterator[DecodePool]:
    with DecodePool(1, 30.0, 2 << 30) as pool:
        yield pool
