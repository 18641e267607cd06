"""A classifier that does as it is told, and requests to the service around it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from rbft.api import ClassifyAnswer, ModelVersion, RationaleAnswer, VideoFacts
from rbft.config import ServeConfig
from rbft.records import Clip
from serve.app import build_app
from serve.clips import Seen
from tests.serve.samples import SPEC, TASK

VERSION = ModelVersion(name="run/rb-ft", fingerprint="0123456789abcdef")
Act = Callable[[], Awaitable[None]]
FACTS = VideoFacts(num_frames=4, fps=1.0, duration_s=4.0)


class ScriptedClassifier:
    """Answers with the context as label; before it looks at a video, does what `act` says. Explains in `pieces`, doing before each what
    `before_piece` says."""

    def __init__(self, act: Act | None = None, pieces: Sequence[str] = ("Scene: ", "a room")) -> None:
        self.task = TASK
        self.version = VERSION
        self.rationale_task = TASK
        self.rationale_version = VERSION
        self.spec = SPEC
        self.calibration = None
        self.lineage: dict[str, Any] = {"system": "rb-ft", "base": "0123", "base_model": "/home/of/somebody", "versions": {"ray": "2"}}
        self.paths: list[Path] = []
        self.num_bytes: list[int] = []
        self.explained: list[Seen] = []
        self.num_closed = 0
        self.act = act
        self.before_piece: Callable[[int], Awaitable[None]] | None = None
        self.pieces = pieces

    async def look(self, path: Path) -> Clip:
        self.paths.append(path)
        if self.act is not None:
            await self.act()
        self.num_bytes.append(len(path.read_bytes()))
        return Clip(np.zeros((4, 28, 28, 3), np.uint8), (0.0, 1.0, 2.0, 3.0), 1.0, 4.0, 8.0, "pyav")

    async def classify(self, clip: Clip, context: str | None, threshold: float | None) -> ClassifyAnswer:
        ranked = {"abnormal": 0.75, "normal": 0.25}
        return ClassifyAnswer(label=context or "none", probabilities=ranked, threshold=threshold, model=VERSION, video=FACTS)

    async def explain(self, seen: Seen) -> AsyncGenerator[str | RationaleAnswer, None]:
        self.explained.append(seen)
        try:
            for number, piece in enumerate(self.pieces):
                if self.before_piece is not None:
                    await self.before_piece(number)
                yield piece
            text = "".join(self.pieces)
            yield RationaleAnswer(text=text, sections={}, finish_reason="stop", num_tokens=2, model=VERSION, video=FACTS)
        finally:
            self.num_closed += 1

    async def check_health(self) -> None:
        if self.act is not None:
            await self.act()


def raising(error: Exception) -> Act:
    async def act() -> None:
        raise error

    return act


def client_of(
    classifier: ScriptedClassifier, max_running: int = 4, client: tuple[str, int] = ("127.0.0.1", 123), **config: Any
) -> httpx.AsyncClient:
    app = build_app(classifier, ServeConfig(**config), max_running, max_running)
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


def scope_of(path: str, headers: Mapping[str, str]) -> dict[str, Any]:
    """The ASGI scope of a POST from this machine, for what httpx cannot do: hang up, or never end its body."""
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in ({"Host": "127.0.0.1"} | dict(headers)).items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
