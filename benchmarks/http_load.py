"""Clients of an HTTP service: each asks, waits for the answer, and asks again. Bodies are made beforehand, so that asking costs little."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

TIMEOUT_S = 300.0
_BOUNDARY = "rbft-benchmark-0123456789abcdef"


@dataclass(frozen=True)
class Ask:
    """A request, whole."""

    url: str
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class Reply:
    """What came back, and when."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float
    """From sending to the last byte."""

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Measured:
    """What `num_clients` got."""

    replies: Sequence[Reply]
    seconds: float
    """From the first request to the last answer."""
    cpu_s: dict[str, float] = field(default_factory=dict)
    """What the service's processes had of the CPU meanwhile, by what they do."""

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.replies) / self.seconds

    def latency_s(self, percentile: float) -> float:
        return float(np.percentile([reply.seconds for reply in self.replies], percentile))


def multipart(url: str, video: bytes | None = None, headers: dict[str, str] | None = None, **fields: str) -> Ask:
    """A form as browsers and curl send it."""
    parts = [
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()
    ]
    if video is not None:
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="video"; filename="clip.mp4"\r\nContent-Type: video/mp4\r\n\r\n'
        parts.append(head.encode() + video + b"\r\n")
    body = b"".join([*parts, f"--{_BOUNDARY}--\r\n".encode()])
    return Ask(url, body, {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"} | (headers or {}))


def chat(url: str, model: str, text: str, video: bytes, **parameters: Any) -> Ask:
    """A question about a video in a data URI, for the chat API that OpenAI has made common and vLLM has extended."""
    uri = "data:video/mp4;base64," + base64.b64encode(video).decode()
    content = [{"type": "video_url", "video_url": {"url": uri}}, {"type": "text", "text": text}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], **parameters}
    return Ask(url, json.dumps(body).encode(), {"Content-Type": "application/json"})


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """Connections that are kept, as many as clients want, for less time than any server keeps them: while the other contender has its turn
    all are idle, and one that is just being closed would be an error."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), auto_decompress=False
    ) as http:
        yield http


async def send(http: aiohttp.ClientSession, ask: Ask) -> Reply:
    started = time.perf_counter()
    async with http.post(ask.url, data=ask.body, headers=ask.headers) as response:
        body = await response.read()
        return Reply(response.status, dict(response.headers), body, time.perf_counter() - started)


async def ask_all(http: aiohttp.ClientSession, asks: Sequence[Ask], num_clients: int) -> Measured:
    """`asks`, each once, by `num_clients` at a time."""
    left: Iterator[Ask] = iter(asks)
    replies: list[Reply] = []

    async def client() -> None:
        for ask in left:
            replies.append(await send(http, ask))

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(num_clients)))
    return Measured(replies, time.perf_counter() - started)
