"""A tiny random model with a task card, the real classifier on it, and the real service around that, over a real socket."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from starlette.types import ASGIApp

from rbft.api import ModelVersion
from rbft.config import ModelConfig, ServeConfig
from rbft.engines.base import Sampling
from rbft.engines.hf import HFEngine
from rbft.models.load import TASK_CARD, make_card
from rbft.storage import write_json
from rbft.video.pool import DecodePool
from serve.app import build_app
from serve.classifier import VideoClassifier
from serve.model import ServedModel
from tests.serve.samples import SPEC, TASK, write_clip
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as training leaves it, but for its marker."""
    folder = make_tiny_model(tmp_path_factory.mktemp("served") / "tiny")
    write_json(f"{folder}/{TASK_CARD}", make_card(TASK, SPEC, {}))
    return folder


@pytest.fixture(scope="session")
def clip_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "square.mp4")


@pytest.fixture(scope="session")
def decoders() -> Iterator[DecodePool]:
    pool = DecodePool(1, 30.0, 2 << 30)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def engine(trained_folder: Path) -> HFEngine:
    return HFEngine(ModelConfig(path=str(trained_folder), dtype="float32"), SPEC)


@pytest.fixture(scope="session")
def url(trained_folder: Path, engine: HFEngine, decoders: DecodePool) -> Iterator[str]:
    """Where the service listens."""
    model = ServedModel(trained_folder, ModelVersion(name="tiny", fingerprint="f"), TASK, SPEC, {})
    classifier = VideoClassifier(engine, decoders, model, Sampling(max_new_tokens=4))
    app = build_app(classifier, ServeConfig(max_upload_bytes=1_000_000), 2, 1)
    with listening(app) as address:
        yield address


@contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """Where `app` listens, on a real socket."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server has not started"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
