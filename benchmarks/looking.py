"""What masks and attention maps cost, and where the base model looks. `python -m benchmarks looking [--json PATH]`

200 clips of a miniature world, as files: decoded, masked over what saliency finds and over random places, and read by the base model's
attention. The goal is five minutes on two cores for all of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import describe_machine
from miniature.boxes import write_world_boxes
from miniature.world import sample_world
from miniature.write import write_world
from ray_jobs.run import versions
from rbft.config import MaskingConfig, RunConfig, load_config
from rbft.evaluation.looking.attention import AttentionReader
from rbft.evaluation.looking.attention_map import AttentionMap
from rbft.evaluation.looking.box_files import read_boxes
from rbft.evaluation.looking.boxes import boxes_of_others
from rbft.evaluation.looking.focus import Enrichment, enrichment, focuses
from rbft.evaluation.looking.heatmaps import overlay
from rbft.evaluation.looking.masking import Masker
from rbft.evaluation.looking.sources import SaliencyBoxes
from rbft.models.chat import ChatAdapter
from rbft.models.load import load_model
from rbft.records import Clip
from rbft.video.pool import DecodePool

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/looking.md"
NUM_CLIPS = 200
BATCH = 16
GOAL_S = 300.0


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.looking")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the numbers too")
    chosen = parser.parse_args(arguments)
    seconds, found = _measure()
    if chosen.json:
        numbers = {"seconds": seconds, "enrichment": {name: each.model_dump(mode="json") for name, each in found.items()}}
        chosen.json.write_text(json.dumps(numbers, indent=2) + "\n")
    RESULT.write_text(_page(seconds, found))
    print(RESULT.read_text() + f"wrote {RESULT.relative_to(ROOT)}")


def _measure() -> tuple[dict[str, float], dict[str, Enrichment]]:
    """(step -> seconds for all clips, kind of map and whose boxes -> enrichment)."""
    config = load_config(ROOT / "configs/miniature.yaml")
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="rbft-bench-") as folder, DecodePool(2) as pool:
        world = sample_world(seed=5, sizes={"test": NUM_CLIPS})
        write_world(Path(folder), world)
        boxes = read_boxes(write_world_boxes(Path(folder)))
        begun = time.perf_counter()
        clips = {each.plan.id: pool.decode(f"{folder}/clips/{each.plan.id}.mp4", config.video.spec()) for each in world}
        seconds["decoding"] = time.perf_counter() - begun

    async def mask(masker: Masker) -> None:
        for id_, clip in clips.items():
            await masker.mask(id_, clip)

    for kind in ("object", "random"):
        begun = time.perf_counter()
        asyncio.run(mask(Masker(SaliencyBoxes(), MaskingConfig(), kind)))  # type: ignore[arg-type]
        seconds[f"{kind} masks"] = time.perf_counter() - begun

    adapter = ChatAdapter(config.model.path, config.video.spec())
    reader = AttentionReader(load_model(config.model.path, config.model.dtype), adapter, config.evaluation.attention.num_layers)
    found: dict[str, Enrichment] = {}
    maps: dict[str, AttentionMap] = {}
    for method in ("attention", "gradient x attention"):
        begun = time.perf_counter()
        maps = _maps(reader, clips, config, method)
        seconds[f"{method} maps"] = time.perf_counter() - begun
        for whose, theirs in (("its own", boxes), ("another clip's", boxes_of_others(boxes))):
            found[f"{method}, {whose} boxes"] = enrichment(focuses(maps, clips, theirs))
    begun = time.perf_counter()
    for id_, clip in clips.items():
        overlay(clip, maps[id_])
    seconds["heatmaps"] = time.perf_counter() - begun
    return seconds, found


def _maps(reader: AttentionReader, clips: dict[str, Clip], config: RunConfig, method: str) -> dict[str, AttentionMap]:
    """Of every clip, asked the classification question; what speaks for the last label, where the gradient counts."""
    maps: dict[str, AttentionMap] = {}
    messages, label = config.task.question_messages(), config.task.labels[-1]
    for start in range(0, len(clips), BATCH):
        ids = list(clips)[start : start + BATCH]
        if method == "attention":
            read = reader.read([(clips[id_], messages) for id_ in ids])
        else:
            read = reader.read_gradient([(clips[id_], messages, label) for id_ in ids])
        maps |= dict(zip(ids, read, strict=True))
    return maps


def _page(seconds: dict[str, float], found: dict[str, Enrichment]) -> str:
    total = sum(seconds.values())
    used = ", ".join(f"{name} {version}" for name, version in versions().items() if name in ("rbft", "torch", "transformers"))
    steps = "\n".join(f"| {step} | {1000 * value / NUM_CLIPS:.1f} | {value:.1f} |" for step, value in seconds.items())
    lines = []
    for name, each in found.items():
        low, high = each.enrichment_ci95
        lines.append(f"| {name} | {each.inside:.3f} | {each.area:.3f} | {each.enrichment:.2f} [{low:.2f}, {high:.2f}] |")
    numbers = "\n".join(lines)
    return f"""# Masks and attention maps (miniature world)

`python -m benchmarks looking`, {time.strftime("%Y-%m-%d")}, on {describe_machine()}. {used}.
{NUM_CLIPS} clips of 8 frames of 84 x 84; the base model, float32. All steps took {total:.0f} s; the goal is {GOAL_S:.0f} s.

| step | ms a clip | s in all |
| --- | ---: | ---: |
{steps}

Where the base model looks when it is about to say the label, by the true boxes of the subjects: the share of the attention on the video
that is inside the boxes, the share of the area that they fill, and the one over the other, with 95 % intervals over clips. A model that
only knew where subjects usually are would look at another clip's boxes as much as at its own.

| map, boxes | inside | area | enrichment |
| --- | ---: | ---: | ---: |
{numbers}
"""


if __name__ == "__main__":
    main(sys.argv[1:])
