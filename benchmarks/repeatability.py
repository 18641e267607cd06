"""Do greedy texts depend on what else is in the engine? `python -m benchmarks repeatability [--json PATH]`

The same clips of the miniature, asked about by vLLM one at a time, a few at a time, and all at once in another order: the share of texts
that are the same to the letter. Sums are taken in another order in another batch, so where two words are as good as equal, the other may
win.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import describe_machine
from miniature.world import sample_world
from miniature.write import write_world
from ray_jobs.run import versions
from rbft.config import load_config
from rbft.data.manifest import read_manifest
from rbft.engines.base import Sampling
from rbft.engines.vllm import VllmEngine
from rbft.records import Clip
from rbft.video.pool import DecodePool

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/repeatability.md"
NUM_CLIPS = 80
AT_A_TIME = (1, 4, 32)
"""The first is what the others are compared with; the last is the engine's `max_num_seqs`."""


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.repeatability")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the shares too")
    chosen = parser.parse_args(arguments)
    shares = asyncio.run(_measure())
    if chosen.json:
        chosen.json.write_text(json.dumps(shares, indent=2) + "\n")
    RESULT.write_text(_page(shares))
    print(_table(shares) + f"\nwrote {RESULT.relative_to(ROOT)}")


async def _measure() -> dict[str, float]:
    """How the clips were asked about -> share of texts that are those of one at a time, asked first."""
    config = load_config(ROOT / "configs/miniature.yaml")
    with tempfile.TemporaryDirectory(prefix="rbft-bench-") as folder, DecodePool(2) as pool:
        world = write_world(Path(folder) / "world", sample_world(seed=5, sizes={"train": NUM_CLIPS, "test": 2}))
        uris = [str(world.parent / example.uri) for example in read_manifest(str(world)) if example.split == "train"]
        clips = [pool.decode(uri, config.video.spec()) for uri in uris]
    engine = VllmEngine(config.model, config.engine, config.video.spec())
    messages, sampling = config.task.rationale_messages(), Sampling(config.generation.max_new_tokens)

    async def write(order: Sequence[int], at_a_time: int) -> list[str]:
        places = asyncio.Semaphore(at_a_time)
        texts: dict[int, str] = {}

        async def one(number: int, clip: Clip) -> None:
            async with places:
                texts[number] = (await engine.generate(clip, messages, sampling)).text

        await asyncio.gather(*(one(number, clips[number]) for number in order))
        return [texts[number] for number in range(len(clips))]

    in_order = range(NUM_CLIPS)
    shuffled = random.Random(0).sample(in_order, NUM_CLIPS)
    alone = await write(in_order, AT_A_TIME[0])
    asked = {"one at a time, again": (in_order, AT_A_TIME[0]), "one at a time, in another order": (shuffled, AT_A_TIME[0])}
    asked |= {f"{number} at a time": (in_order, number) for number in AT_A_TIME[1:]}
    asked |= {f"{number} at a time, in another order": (shuffled, number) for number in AT_A_TIME[1:]}
    shares = {}
    for how, (order, at_a_time) in asked.items():
        texts = await write(order, at_a_time)
        shares[how] = sum(text == first for text, first in zip(texts, alone, strict=True)) / NUM_CLIPS
        print(f"{how}: {100 * shares[how]:.1f} % the same", flush=True)
    engine.close()
    return shares


def _table(shares: dict[str, float]) -> str:
    lines = [f"| {how} | {100 * share:.1f} % |" for how, share in shares.items()]
    return "\n".join(["| asked | texts the same as one at a time |", "| --- | ---: |", *lines])


def _page(shares: dict[str, float]) -> str:
    used = ", ".join(f"{package} {version}" for package, version in versions().items())
    return f"""# Do greedy texts depend on what else is in the engine?

`python -m benchmarks repeatability`, {time.strftime("%Y-%m-%d")}, on {describe_machine()}. {used}.
{NUM_CLIPS} clips of the miniature, float32, greedy. What is drawn with a temperature has a seed of its own by (seed, id, sample), and
differs where greedy texts would.

{_table(shares)}

On GPUs `engine.batch_invariant: true` asks vLLM for kernels whose sums do not depend on the batch; it has not been measured here.
"""


if __name__ == "__main__":
    main(sys.argv[1:])
