"""What a model looks at, as Ray tasks: boxes found by the base model, and attention maps, each beside a model on a GPU of its own.

What they find is kept under the fingerprint of what determines it, so that a second submission asks for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from ray_jobs.engine_actor import start_engine
from ray_jobs.evaluate import held_out, require_model
from ray_jobs.progress import say
from ray_jobs.ray_runtime import ensure_ray, reason
from ray_jobs.run import Run, video_key
from ray_jobs.work import EngineName
from rbft import artifacts, rows, storage
from rbft.config import ModelConfig, RunConfig
from rbft.errors import ConfigError, JobError, VideoError
from rbft.evaluation.looking.attention_map import AttentionMap, map_schema, maps_from_table, maps_table
from rbft.evaluation.looking.box_files import write_boxes
from rbft.evaluation.looking.boxes import Box, boxes_of_others
from rbft.evaluation.looking.focus import Focus, focuses
from rbft.evaluation.looking.grounding import GroundedBoxes
from rbft.evaluation.looking.sources import make_source
from rbft.model_store import on_this_node
from rbft.records import Clip, Example
from rbft.video.pool import DecodePool

Boxes = dict[str, tuple[Box, ...]]
"""Video id -> its boxes."""


def require_place_for_boxes(config: RunConfig) -> None:
    """Raise `ConfigError` where boxes are to be found and there is no disk for their file; to be asked before a run is paid for."""
    masking = config.evaluation.masking
    if masking.boxes is None and masking.find == "grounding" and not storage.is_local(config.run_dir):
        raise ConfigError("evaluation.masking.find: grounding writes a file of boxes, and needs output_dir on a disk that all nodes share")


def find_boxes(run: Run) -> None:
    """See that boxes can be had without asking a model: where `evaluation.masking` says grounding, the base model finds them now, once for
    all systems, and the run's configuration then names their file."""
    masking = run.config.evaluation.masking
    if masking.boxes is None and masking.find == "grounding":
        require_place_for_boxes(run.config)
        run.change_evaluation(masking=masking.model_copy(update={"boxes": _grounded(run)}))


def _grounded(run: Run) -> str:
    """The file of boxes that the base model finds in the held-out videos."""
    config, examples = run.config, held_out(run)
    determines = {
        "kind": "grounded boxes",
        "model": run.model_fingerprint,
        "num_objects": config.evaluation.masking.num_objects,
        "video": asdict(config.video.spec()),
        "videos": [video_key(example) for example in examples],
    }
    path = storage.local_path(run.layout.looking("boxes", artifacts.fingerprint(determines))).with_suffix(".parquet")
    if not path.exists():
        say(f"boxes: asking the base model where the objects of {len(examples)} videos are")
        found, num_unreadable = _task(config, _ground, config, config.evaluation.engine, examples)
        if not any(found.values()):
            raise JobError(
                f"the base model found no object in any of {len(examples)} videos; give evaluation.masking.boxes, or find: saliency"
            )
        say(f"boxes: in {sum(map(bool, found.values()))} of {len(examples)} videos; {num_unreadable} answers were not the JSON asked for")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_boxes(path.with_suffix(".new"), found).replace(path)
    return str(path)


def _ground(config: RunConfig, engine_name: EngineName, examples: Sequence[Example]) -> tuple[Boxes, int]:
    async def ground() -> tuple[Boxes, int]:
        engine = start_engine(config, engine_name, config.model)
        source = GroundedBoxes(engine, config.evaluation.masking.num_objects)
        places = asyncio.Semaphore(config.engine.max_num_seqs)

        async def boxes_of(example: Example) -> tuple[Box, ...]:
            async with places:
                try:
                    clip = await pool.decode_async(example.uri, config.video.spec(), example.start_s, example.end_s)
                except VideoError:
                    return ()
                return await source.boxes(example.id, clip)

        with DecodePool(config.engine.decode_workers, config.video.timeout_s, config.video.memory_limit_bytes) as pool:
            try:
                found = await asyncio.gather(*(boxes_of(example) for example in examples))
            finally:
                engine.close()
        return dict(zip((example.id for example in examples), found, strict=True)), source.num_unreadable

    return asyncio.run(ground())


@dataclass(frozen=True)
class Looks:
    """Where one system's model looks when it is about to say the label."""

    here: dict[str, Focus]
    """Id -> its attention against the video's boxes; without videos where there is nothing to measure."""
    elsewhere: dict[str, Focus]
    """The same against the boxes of another video."""
    maps: dict[str, AttentionMap]
    """Of the videos to be shown."""
    boxes: Boxes
    """Likewise."""


def read_attention(run: Run, systems: Sequence[str], shown: Sequence[str]) -> dict[str, Looks]:
    """System -> where its model looks on the held-out videos; with the maps of the videos `shown`."""
    config, examples = run.config, held_out(run)
    found = {}
    for system in systems:
        say(f"attention: reading {len(examples)} videos with {system}")
        found[system] = _task(config, _read, config, require_model(run, system), examples, frozenset(shown))
    return found


def attention_maps(run: Run, system: str, examples: Sequence[Example]) -> dict[str, AttentionMap]:
    """Id -> where the model of `system` looks on each of `examples` that can be decoded; kept beside its predictions."""
    kept = artifacts.fingerprint(run.config.evaluation.attention.model_dump(mode="json"))
    folder = f"{run.artifact(f'evaluation/{system}')}/attention-{kept}"
    done = rows.done_ids(folder, map_schema())
    pending = [example for example in examples if example.id not in done]
    if pending:
        say(f"report: reading the attention of {system} on {len(pending)} videos")
        rows.write_part(folder, _task(run.config, _read_maps, run.config, require_model(run, system), pending))
    wanted = {example.id for example in examples}
    return {id_: each for id_, each in maps_from_table(rows.read_parts(folder, map_schema())).items() if id_ in wanted}


def _read_maps(config: RunConfig, model: ModelConfig, examples: Sequence[Example]) -> pa.Table:
    maps = {example.id: attention for example, _, attention in _looks(config, model, examples)}
    return maps_table(maps, {example.id: VideoError.code for example in examples if example.id not in maps})


def _read(config: RunConfig, model: ModelConfig, examples: Sequence[Example], shown: frozenset[str]) -> Looks:
    source = make_source(config.evaluation.masking)
    maps: dict[str, AttentionMap] = {}
    boxes: Boxes = {}
    clips: dict[str, Clip] = {}
    for example, clip, attention in _looks(config, model, examples):
        maps[example.id] = attention
        boxes[example.id] = asyncio.run(source.boxes(example.id, clip))
        # Its times and its size are needed until the end, its pixels are not.
        clips[example.id] = replace(clip, frames_THWC=np.broadcast_to(np.zeros((), dtype=np.uint8), clip.frames_THWC.shape))
    num_objects = config.evaluation.masking.num_objects
    here, elsewhere = (focuses(maps, clips, of, num_objects) for of in (boxes, boxes_of_others(boxes)))
    return Looks(here, elsewhere, {id_: maps[id_] for id_ in maps if id_ in shown}, {id_: boxes[id_] for id_ in boxes if id_ in shown})


def _looks(config: RunConfig, model: ModelConfig, examples: Sequence[Example]) -> Iterator[tuple[Example, Clip, AttentionMap]]:
    """Each of `examples` that can be decoded, with its clip and where `model` looks, one at a time."""
    import torch

    from rbft.evaluation.looking.attention import AttentionReader
    from rbft.models.chat import ChatAdapter
    from rbft.models.load import load_model

    attention, spec, task = config.evaluation.attention, config.video.spec(), config.task
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = on_this_node(model)
    loaded = load_model(model.path, model.dtype, model.attention).to(device)
    reader = AttentionReader(loaded, ChatAdapter(model.path, spec), attention.num_layers)
    with DecodePool(config.engine.decode_workers, config.video.timeout_s, config.video.memory_limit_bytes) as pool:
        for example in examples:
            try:
                clip = pool.decode(example.uri, spec, example.start_s, example.end_s)
            except VideoError:
                continue
            messages = task.question_messages(example.context)
            if attention.method == "gradient":
                (found,) = reader.read_gradient([(clip, messages, example.label or task.labels[0])])
            else:
                (found,) = reader.read([(clip, messages)])
            yield example, clip, found


def _task(config: RunConfig, function: Any, *arguments: Any) -> Any:
    """What `function(*arguments)` gives in a Ray task with the resources of one engine."""
    import ray

    ensure_ray()
    engine = config.engine
    remote = ray.remote(function).options(num_cpus=engine.num_cpus, num_gpus=engine.num_gpus, resources=engine.resources)
    try:
        return ray.get(remote.remote(*arguments))
    except ray.exceptions.RayError as error:
        raise JobError(f"looking stopped: {reason(error)}; what is finished is kept, submit the job again") from error
