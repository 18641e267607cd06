"""A classifier that does as it is told, and requests to the service around it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from rbft.api import ClassifyAnswer, ModelVersion, RationaleAnswer, VideoFacts
from rbft.config import ServeConfig
from serve.app import build_app
from tests.serve.samples import TASK

VERSION = ModelVersion(name="run/rb-ft", fingerprint="0123456789abcdef")
FACTS = VideoFacts(num_frames=4, fps=1.0, duration_s=4.0)


class ScriptedClassifier:
    """Answers with the upload's size as rationale and the context as label; before that, does what `act` says."""

    def __init__(self, act: Callable[[], Awaitable[None]] | None = None) -> None:
        self.task = TASK
        self.version = VERSION
        self.paths: list[Path] = []
        self.act = act

    async def _look(self, path: Path) -> int:
        self.paths.append(path)
        if self.act is not None:
            await self.act()
        return len(path.read_bytes())

    async def classify(self, path: Path, context: str | None) -> ClassifyAnswer:
        await self._look(path)
        by_label = {"normal": 0.25, "abnormal": 0.75}
        return ClassifyAnswer(label=context or "none", probabilities=by_label, model=VERSION, video=FACTS, timing_s={"engine": 0.5})

    async def rationale(self, path: Path, context: str | None) -> RationaleAnswer:
        num_bytes = await self._look(path)
        return RationaleAnswer(text=f"{num_bytes} bytes", sections={}, finish_reason="stop", num_tokens=2, model=VERSION, video=FACTS)

    async def check_health(self) -> None:
        if self.act is not None:
            await self.act()


def raising(error: Exception) -> Callable[[], Awaitable[None]]:
    async def act() -> None:
        raise error

    return act


def client_of(
    classifier: ScriptedClassifier, max_running: int = 4, client: tuple[str, int] = ("127.0.0.1", 123), **config: Any
) -> httpx.AsyncClient:
    app = build_app(classifier, ServeConfig(**config), max_running)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=client), base_url="http://127.0.0.1")


def request(
    classifier: ScriptedClassifier,
    method: str,
    route: str,
    config: dict[str, Any] | None = None,
    client: tuple[str, int] = ("127.0.0.1", 123),
    **options: Any,
) -> httpx.Response:
    """The response to one request."""

    async def send() -> httpx.Response:
        async with client_of(classifier, client=client, **(config or {})) as http:
            return await http.request(method, route, **options)

    return asyncio.run(send())
