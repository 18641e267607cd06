"""A tiny model and a few small videos."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.samples import write_video
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "qwen2_5_vl")


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six videos of four or six seconds."""
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"v{i}.mp4", seconds=4 + 2 * (i % 2), seed=i) for i in range(6)]
