"""Minutes of mixed load on the service, hostile files among it: is every request answered, and does memory stay as it is?

`python -m benchmarks serving --soak MINUTES [--media FOLDER]` asks for labels, for labels with reasons, for streamed reasons, and sends
what is no video: broken, empty, cut short and flipped files, playlists, bodies that are too large or no form, and the files of FOLDER.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import numpy.typing as npt

from benchmarks.http_load import Ask, Reply, multipart, send, session
from benchmarks.machine import describe_machine
from benchmarks.services import ROOT, Service
from ray_jobs.run import versions

Floats = npt.NDArray[np.float64]

_SAMPLE_EVERY_S = 5.0
_WARM_SHARE = 0.3
"""Of the time; caches fill first."""
RESULT = ROOT / "benchmarks/results/soak.md"
PAGE_MINUTES = 10.0
"""Of mixed load, at least, for a page."""
_NUM_CLIENTS = {"labels": 8, "reasons": 2, "hostile": 3}
_MAX_UPLOAD_BYTES = 4 << 20
SETTINGS = [f"serve.max_upload_bytes={_MAX_UPLOAD_BYTES}", "serve.clip_cache_bytes=16000000"]
"""A cache of clips that is soon full: what grows then is a leak."""


@dataclass
class Soaked:
    """What came of it."""

    seconds: float = 0.0
    statuses: dict[str, Counter[int]] = field(default_factory=lambda: {kind: Counter() for kind in _NUM_CLIENTS})
    num_unanswered: int = 0
    """Requests whose connection ended without an answer."""
    memory_bytes: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    """Seconds since the beginning, and bytes of each part of the service."""

    def figures(self) -> dict[str, Any]:
        answered: Counter[int] = sum(self.statuses.values(), Counter())
        return {
            "minutes": round(self.seconds / 60, 1),
            "requests": sum(answered.values()) + self.num_unanswered,
            "unanswered": self.num_unanswered,
            "statuses": {kind: dict(sorted(each.items())) for kind, each in self.statuses.items()},
            "num_5xx_but_503": sum(count for status, count in answered.items() if status >= 500 and status != 503),
            "memory_mib": {name: round(statistics.median(held)) for name, (_, held) in self._warm_memory().items()},
            "memory_slope_mib_per_minute": {
                name: round(float(np.polyfit(at, held, 1)[0]), 2) for name, (at, held) in self._warm_memory().items()
            },
        }

    def _warm_memory(self) -> dict[str, tuple[Floats, Floats]]:
        """Of each part, and of all: minutes since the beginning, and MiB, once caches are full."""
        warm = [(seconds / 60, parts) for seconds, parts in self.memory_bytes if seconds >= _WARM_SHARE * self.seconds]
        at = np.array([minutes for minutes, _ in warm])
        names = sorted({name for _, parts in warm for name in parts})
        held = {name: np.array([parts.get(name, 0) / 2**20 for _, parts in warm]) for name in names}
        return {"all": (at, np.sum(list(held.values()), axis=0))} | {name: (at, each) for name, each in held.items()}


async def soak(service: Service, videos: Iterator[bytes], minutes: float, media: Path | None) -> Soaked:
    """Load `service` for so long."""
    result = Soaked()
    good = [next(videos) for _ in range(64)]
    bad = cycle(_hostile(service.url, good, media))
    started = time.monotonic()

    async def labels(http: aiohttp.ClientSession) -> Reply:
        return await send(http, multipart(f"{service.url}/v1/classify", next(videos)))

    async def reasons(http: aiohttp.ClientSession) -> Reply:
        first = await send(http, multipart(f"{service.url}/v1/classify", next(videos), with_rationale="true"))
        if first.status != 200:
            return first
        result.statuses["reasons"][first.status] += 1
        video_id = first.json()["video_id"] or ""
        return await send(http, multipart(f"{service.url}/v1/rationale", None, {"Accept": "text/event-stream"}, video_id=video_id))

    async def hostile(http: aiohttp.ClientSession) -> Reply:
        return await send(http, next(bad))

    async def client(kind: str, ask: Callable[[aiohttp.ClientSession], Awaitable[Reply]]) -> None:
        async with session() as http:  # of its own: a connection that a hostile request broke is no other client's
            while time.monotonic() - started < 60 * minutes:
                try:
                    result.statuses[kind][(await ask(http)).status] += 1
                except (aiohttp.ClientError, TimeoutError):
                    result.num_unanswered += 1

    async def watch() -> None:
        while time.monotonic() - started < 60 * minutes:
            result.memory_bytes.append((time.monotonic() - started, await asyncio.to_thread(service.memory_bytes)))
            await asyncio.sleep(_SAMPLE_EVERY_S)

    asks = {"labels": labels, "reasons": reasons, "hostile": hostile}
    await asyncio.gather(watch(), *(client(kind, asks[kind]) for kind, number in _NUM_CLIENTS.items() for _ in range(number)))
    result.seconds = time.monotonic() - started
    return result


def _hostile(url: str, good: Sequence[bytes], media: Path | None) -> list[Ask]:
    """Requests that must be refused, or, where a file is broken only a little, answered."""
    generator = random.Random(0)
    files = [
        b"",
        b"no video\n" * 100,
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        generator.randbytes(100_000),
    ]
    for video in good:
        files.append(video[: generator.randrange(len(video))])
        flipped = bytearray(video)
        for _ in range(generator.randrange(1, 200)):
            flipped[generator.randrange(len(flipped))] ^= 1 << generator.randrange(8)
        files.append(bytes(flipped))
    if media is not None:
        files += [
            path.read_bytes() for path in sorted(media.rglob("*")) if path.is_file() and path.stat().st_size <= _MAX_UPLOAD_BYTES // 2
        ]
    asks = [multipart(f"{url}/v1/classify", content) for content in files]
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    asks.append(multipart(f"{url}/v1/classify", bytes(_MAX_UPLOAD_BYTES + 1)))
    many_fields: dict[str, Any] = {f"field{number}": "x" for number in range(200)}
    asks.append(multipart(f"{url}/v1/classify", good[0], **many_fields))
    asks += [Ask(f"{url}/v1/classify", b"--y\r\nnot a form", form), Ask(f"{url}/v1/classify", b"{}", {"Content-Type": "application/json"})]
    asks += [multipart(f"{url}/v1/rationale", None, video_id="never-was"), multipart(f"{url}/v1/frames", None, video_id="")]
    generator.shuffle(asks)
    return asks


def soak_page(figures: dict[str, Any], with_media: bool) -> str:
    """The page about `figures`, those of a `Soaked`."""
    used = ", ".join(f"{package} {version}" for package, version in versions().items())
    media = ", and a folder of 238 real, odd and broken video files (`--media`)" if with_media else ""
    rows = "\n".join(
        f"| {kind} | {', '.join(f'{count} x {status}' for status, count in each.items())} |" for kind, each in figures["statuses"].items()
    )
    parts = "\n".join(
        f"| {name} | {mib} | {figures['memory_slope_mib_per_minute'][name]:+.1f} |"
        for name, mib in sorted(figures["memory_mib"].items(), key=lambda item: -item[1])
    )
    return f"""# Minutes of mixed load on the service

`python -m benchmarks serving --soak {figures["minutes"]:g}`, {time.strftime("%Y-%m-%d")}, on {describe_machine()}. {used}.
Eight clients ask for labels, two for labels with reasons and then for streamed reasons, three send what is no video: broken, empty, cut
short and flipped files, playlists, bodies that are too large or no form{media}.

| asked | answers |
| --- | --- |
{rows}

{figures["requests"]} requests in {figures["minutes"]:g} minutes: {figures["unanswered"]} without an answer,
{figures["num_5xx_but_503"]} with a 5xx other than 503.

Memory of the service's processes, each page once, after the first three tenths of the time:

| part | MiB, median | MiB a minute |
| --- | ---: | ---: |
{parts}
"""
