"""A real engine on a tiny model, a real decode pool, and videos good and bad."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rbft.config import ModelConfig
from rbft.engines.hf import HFEngine
from rbft.video.pool import DecodePool
from tests.samples import SPEC, write_video
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "qwen2_5_vl")
    return HFEngine(ModelConfig(path=str(folder), dtype="float32"), SPEC, device="cpu")


@pytest.fixture(scope="session")
def pool() -> Iterator[DecodePool]:
    with DecodePool(2) as pool:
        yield pool


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good.mp4, other.mp4 and corrupt.mp4, and no missing.mp4."""
    folder = tmp_path_factory.mktemp("videos")
    good = write_video(folder / "good.mp4")
    write_video(folder / "other.mp4", seed=1)
    (folder / "corrupt.mp4").write_bytes(good.read_bytes()[:200])
    return folder
