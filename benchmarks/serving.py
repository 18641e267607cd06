"""Our service against vLLM's own server, with the same model and the same videos. `python -m benchmarks serving [--json PATH]`

Both run on this machine, warm, and are asked in turns: the one is idle while the other works. Both get the same mp4 files, each of them new
to both. Ours answers `/v1/classify` with the exact likelihood of every label and its end, calibrated; vLLM's server gets the file
as a data URI in its chat API and reads the labels' first tokens only (`max_tokens` 1 and `logprob_token_ids`), which is the quickest way it
has, and which is enough to choose by where labels begin differently.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks.http_load import Ask, Measured, Reply, ask_all, chat, multipart, send, session
from benchmarks.machine import describe_machine
from benchmarks.services import PEER_MODEL, ROOT, Service, ours, vllm_server
from benchmarks.soak import PAGE_MINUTES, SETTINGS, soak, soak_page
from benchmarks.soak import RESULT as SOAK_RESULT
from miniature.draw import render
from miniature.world import sample_world
from miniature.write import encode_mp4
from ray_jobs.run import versions
from rbft.config import RunConfig, load_config
from rbft.models.chat import ChatAdapter

RESULT = ROOT / "benchmarks/results/serving.md"
CONFIG = ROOT / "configs/miniature.yaml"

NUM_ROUNDS = 5
NUM_REQUESTS = {1: 32, 4: 64, 16: 192, 64: 384}
"""Clients -> requests of a round."""
NUM_STREAMS = 50
"""Asked for at once; the service writes as many of them at a time as it has places for rationales, and the others wait."""
_NUM_BESIDE_STREAMS = (16, 96)
"""Clients and requests of a round, with the streams and without."""
_NUM_DRAWN = 64
"""Videos that are drawn; the others are these, their pixels shifted."""

Videos = Iterator[bytes]


@dataclass
class Contender:
    """One of the two services."""

    service: Service
    ask: Callable[[bytes], Ask]
    measured: dict[int, list[Measured]]
    """Clients -> of each round."""


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks serving", description=__doc__)
    parser.add_argument("--model", default=str(ROOT / "miniature/model"), metavar="FOLDER", help="what both serve")
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS, metavar="N")
    parser.add_argument("--clients", type=int, nargs="+", default=list(NUM_REQUESTS), choices=list(NUM_REQUESTS))
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="of our service's configuration")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="instead: mixed load for so long, hostile files in it")
    parser.add_argument("--media", type=Path, metavar="FOLDER", help="more files for --soak")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the ratios too")
    chosen = parser.parse_args(arguments)
    if chosen.soak:
        _soak(chosen)
        return
    config = load_config(CONFIG, chosen.set)
    with tempfile.TemporaryDirectory(prefix="rbft-bench-") as folder, ExitStack() as services:
        logs = Path(folder)
        started = time.monotonic()
        peer = services.enter_context(vllm_server(config, chosen.model, logs / "vllm.log"))
        mine = services.enter_context(ours(CONFIG, chosen.model, chosen.set, logs / "ours.log"))
        print(f"both answer after {time.monotonic() - started:.0f} s", flush=True)
        result = asyncio.run(_measure(mine, peer, config, chosen.model, chosen.clients, chosen.rounds))
    print(result.table(), result.cpu_table(), result.phases, result.same_label, result.beside(), sep="\n")
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(result.figures(), indent=2) + "\n")
    if chosen.rounds >= NUM_ROUNDS and chosen.clients == list(NUM_REQUESTS):
        RESULT.write_text(_page(result))
        print(f"wrote {RESULT.relative_to(ROOT)}")


def _soak(chosen: argparse.Namespace) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="rbft-bench-") as folder,
        ours(CONFIG, chosen.model, [*SETTINGS, *chosen.set], Path(folder) / "ours.log") as service,
    ):
        figures = asyncio.run(soak(service, _videos(), chosen.soak, chosen.media)).figures()
    print(json.dumps(figures, indent=2))
    if chosen.soak >= PAGE_MINUTES:
        SOAK_RESULT.write_text(soak_page(figures, chosen.media is not None))
        print(f"wrote {SOAK_RESULT.relative_to(ROOT)}")
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n")


@dataclass(frozen=True)
class Result:
    """What was measured."""

    levels: dict[int, tuple[list[Measured], list[Measured]]]
    """Clients -> ours and theirs, round by round."""
    beside_streams: list[tuple[Measured, Measured, int]]
    """Classifications of a round without the streams and with them, and how many streams ended meanwhile."""
    same_label: float
    """Share of videos about which both say the same."""
    phases: dict[str, float]
    """Of a request at one client: median milliseconds."""

    def figures(self) -> dict[str, Any]:
        return {
            "levels": [self._level(clients) for clients in self.levels],
            "overhead_p50_ms": round(self.phases["overhead"], 2),
            "phases_p50_ms": {name: round(ms, 2) for name, ms in self.phases.items()},
            "p95_ratio_beside_streams": round(self._beside(), 3),
            "num_streams": NUM_STREAMS,
            "same_label": self.same_label,
        }

    def _level(self, clients: int) -> dict[str, float]:
        mine, theirs = self.levels[clients]
        pairs = list(zip(mine, theirs, strict=True))

        def latency(percentile: float) -> float:
            return round(statistics.median(a.latency_s(percentile) / b.latency_s(percentile) for a, b in pairs), 3)

        difference = statistics.median(a.latency_s(50) - b.latency_s(50) for a, b in pairs)
        return {
            "clients": clients,
            "throughput_ratio": round(statistics.median(a.rate / b.rate for a, b in pairs), 3),
            "p50_ratio": latency(50),
            "p95_ratio": latency(95),
            "p99_ratio": latency(99),
            "p50_difference_ms": round(1000 * difference, 2),
        }

    def _beside(self) -> float:
        return statistics.median(loaded.latency_s(95) / alone.latency_s(95) for alone, loaded, _ in self.beside_streams)

    def table(self) -> str:
        lines = [
            "| clients | ours: answers/s, p50, p95, p99 ms | vllm serve | throughput ratio | p50 ratio | p99 ratio | p50 difference ms |"
        ]
        lines.append("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for clients, (mine, theirs) in self.levels.items():
            level = self._level(clients)
            rates = [a.rate / b.rate for a, b in zip(mine, theirs, strict=True)]
            lines.append(
                f"| {clients} | {_speeds(mine)} | {_speeds(theirs)} | {level['throughput_ratio']:.2f} [{min(rates):.2f}, {max(rates):.2f}] "
                f"| {level['p50_ratio']:.2f} | {level['p99_ratio']:.2f} | {level['p50_difference_ms']:.1f} |"
            )
        return "\n".join(lines)

    def cpu_table(self) -> str:
        """Milliseconds of CPU a request, by what they go to, at the most clients."""
        lines = ["| | in all | by part |", "| --- | ---: | --- |"]
        for name, rounds in zip(("ours", "vllm serve"), self.levels[max(self.levels)], strict=True):
            number = sum(len(each.replies) for each in rounds)
            parts = {part: 1000 * sum(each.cpu_s.get(part, 0.0) for each in rounds) / number for part in rounds[0].cpu_s}
            by_size = sorted(parts.items(), key=lambda item: -item[1])
            lines.append(f"| {name} | {sum(parts.values()):.1f} | {', '.join(f'{part} {ms:.1f}' for part, ms in by_size if ms >= 0.1)} |")
        return "\n".join(lines)

    def beside(self) -> str:
        alone = statistics.median(1000 * each.latency_s(95) for each, _, _ in self.beside_streams)
        loaded = statistics.median(1000 * each.latency_s(95) for _, each, _ in self.beside_streams)
        ended = sum(each for _, _, each in self.beside_streams)
        return f"{alone:.0f} ms without, {loaded:.0f} ms with them, {self._beside():.2f} times as long ({ended} rationales ended meanwhile)"


def _speeds(rounds: Sequence[Measured]) -> str:
    rate = statistics.median(each.rate for each in rounds)
    return f"{rate:.1f}, " + ", ".join(f"{1000 * statistics.median(each.latency_s(p) for each in rounds):.0f}" for p in (50, 95, 99))


async def _measure(mine: Service, peer: Service, config: RunConfig, model: str, levels: Sequence[int], num_rounds: int) -> Result:
    videos = _videos()
    adapter = ChatAdapter(model, config.video.spec())
    first_tokens = {label: adapter.answer_ids(label)[0] for label in config.task.labels}
    question = config.task.question_messages()[-1]["content"]
    text = question if isinstance(question, str) else "".join(part.get("text", "") for part in question)
    read = {
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": True,
        "logprob_token_ids": list(first_tokens.values()),
        "return_tokens_as_token_ids": True,
    }
    contenders = [
        Contender(mine, lambda video: multipart(f"{mine.url}/v1/classify", video), {level: [] for level in levels}),
        Contender(
            peer, lambda video: chat(f"{peer.url}/v1/chat/completions", PEER_MODEL, text, video, **read), {level: [] for level in levels}
        ),
    ]
    beside: list[tuple[Measured, Measured, int]] = []
    same: list[bool] = []
    async with session() as http:
        for round_ in range(num_rounds + 1):  # the first warms up
            for level in levels:
                batch = [next(videos) for _ in range(NUM_REQUESTS[level])]
                for contender in contenders if round_ % 2 else contenders[::-1]:  # nobody is always first
                    measured = await _ask(http, contender, batch, level)
                    contender.measured[level].append(measured)
                if level == 1:
                    pairs = zip(*(contender.measured[1][-1].replies for contender in contenders), strict=True)
                    same += [a.json()["label"] == _chosen(b, first_tokens) for a, b in pairs]
            beside.append(await _beside_streams(http, mine, videos))
            if round_:
                print(f"round {round_}: " + _told(contenders, levels), flush=True)
    return Result(
        {level: (contenders[0].measured[level][1:], contenders[1].measured[level][1:]) for level in levels},
        beside[1:],
        statistics.mean(same) if same else 0.0,
        _phases(contenders[0].measured[levels[0]][1:]),
    )


async def _ask(http: aiohttp.ClientSession, contender: Contender, videos: Sequence[bytes], num_clients: int) -> Measured:
    asks = [contender.ask(video) for video in videos]
    before = contender.service.cpu_s()
    measured = await ask_all(http, asks, num_clients)
    after = contender.service.cpu_s()
    _require_answers(measured)
    return replace(measured, cpu_s={part: spent - before.get(part, 0.0) for part, spent in after.items()})


def _told(contenders: Sequence[Contender], levels: Sequence[int]) -> str:
    return ", ".join(f"{level} clients " + " vs ".join(f"{c.measured[level][-1].rate:.1f}" for c in contenders) + "/s" for level in levels)


def _videos() -> Videos:
    """mp4 files without end, no two the same."""
    drawn = [render(clip.plan)[0] for clip in sample_world(seed=8, sizes={"train": _NUM_DRAWN, "test": 2})][:_NUM_DRAWN]
    number = 0
    while True:
        frames_THWC = drawn[number % len(drawn)]
        turn = number // len(drawn)
        width = frames_THWC.shape[2]
        yield encode_mp4(np.roll(frames_THWC, (turn // width, turn % width), axis=(1, 2)))
        number += 1


def _require_answers(measured: Measured) -> None:
    wrong = next((reply for reply in measured.replies if reply.status != 200), None)
    if wrong is not None:
        raise RuntimeError(f"a request was answered with {wrong.status}: {wrong.body[:500]!r}")


def _chosen(reply: Reply, first_tokens: dict[str, int]) -> str:
    """The label whose first token vLLM's server finds likeliest."""
    reads = {each["token"]: each["logprob"] for each in reply.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
    return max(first_tokens, key=lambda label: reads[f"token_id:{first_tokens[label]}"])


def _phases(rounds: Sequence[Measured]) -> dict[str, float]:
    """Median milliseconds of each phase of a request; `http` is what the service's own clock does not see, `overhead` all but decode and
    engine."""
    rows = []
    for reply in (reply for each in rounds for reply in each.replies):
        timing = {name: 1000 * seconds for name, seconds in reply.json()["timing_s"].items()}
        total = 1000 * reply.seconds
        rows.append(timing | {"http": total - timing["total"], "overhead": total - timing["decode"] - timing["engine"], "latency": total})
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


async def _beside_streams(http: aiohttp.ClientSession, mine: Service, videos: Videos) -> tuple[Measured, Measured, int]:
    """Classifications alone, and while `NUM_STREAMS` rationales are being streamed, always as many: who has one asks for the next."""
    url = f"{mine.url}/v1/classify"
    clients, num_requests = _NUM_BESIDE_STREAMS
    batches = [[multipart(url, next(videos)) for _ in range(num_requests)] for _ in range(2)]
    alone = await ask_all(http, batches[0], clients)
    ids = [reply.json()["video_id"] for reply in alone.replies][:NUM_STREAMS]
    num_ended = 0

    async def stream(video_id: str) -> None:
        nonlocal num_ended
        ask = multipart(f"{mine.url}/v1/rationale", None, {"Accept": "text/event-stream"}, video_id=video_id)
        while True:
            reply = await send(http, ask)
            if reply.status != 200 or b"event: end" not in reply.body:
                raise RuntimeError(f"a rationale was answered with {reply.status}: {reply.body[-300:]!r}")
            num_ended += 1

    streams = [asyncio.ensure_future(stream(video_id)) for video_id in ids]
    await asyncio.sleep(1.0)  # until they write
    try:
        loaded = await ask_all(http, batches[1], clients)
        if broken := [each for each in streams if each.done()]:
            broken[0].result()
    finally:
        for each in streams:
            each.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    for measured in (alone, loaded):
        _require_answers(measured)
    return alone, loaded, num_ended


def _page(result: Result) -> str:
    used = ", ".join(f"{package} {version}" for package, version in versions().items())
    phases = ", ".join(f"{name} {ms:.1f}" for name, ms in result.phases.items())
    return f"""# The service against vLLM's own server

`python -m benchmarks serving`, {time.strftime("%Y-%m-%d")}, on {describe_machine()}. {used}.
{(__doc__ or "").partition(chr(10))[2].strip()}

Medians over {len(next(iter(result.levels.values()))[0])} rounds of ratios within a round; in brackets the range of the rounds. The clients
run on the same cores.

{result.table()}

Both say the same label of {result.same_label:.1%} of the videos.

Milliseconds of a request with one client, medians: {phases}. `http` is what the replica's clock does not see: the
client, Serve's proxy, the way between them; `overhead` is all but decode and engine.

Milliseconds of CPU a request, with {max(result.levels)} clients:

{result.cpu_table()}

With {NUM_STREAMS} rationales asked for all the time as streams, of which the service writes a sixth of `engine.max_num_seqs` at once, the
p95 of {_NUM_BESIDE_STREAMS[0]} clients' classifications is {result.beside()}.
"""


if __name__ == "__main__":
    main(sys.argv[1:])
