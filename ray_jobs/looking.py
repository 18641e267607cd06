"""What a model looks at, as Ray tasks: boxes found by the base model, and attention maps, each beside a model on a GPU of its own.

What they find is kept under the fingerprint of what determines it, so that a second submission asks no model: boxes video by video, the
maps of a model when all are read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_jobs.engine_actor import start_engine
from ray_jobs.evaluate import held_out, require_model
from ray_jobs.progress import say
from ray_jobs.ray_runtime import ensure_ray, reason
from ray_jobs.run import Run, video_key
from ray_jobs.work import EngineName
from rbft import artifacts, rows, storage
from rbft.config import ModelConfig, RunConfig
from rbft.engines.base import Engine
from rbft.errors import ConfigError, DataError, EngineGoneError, JobError, RBFTError, VideoError
from rbft.evaluation.looking.attention_map import AttentionMap, map_schema, maps_from_table, maps_table
from rbft.evaluation.looking.box_files import boxes_from_table, found_schema, found_table, read_boxes, write_boxes
from rbft.evaluation.looking.boxes import Box, boxes_of_others
from rbft.evaluation.looking.focus import Focus, focuses
from rbft.evaluation.looking.grounding import GroundedBoxes
from rbft.evaluation.looking.sources import make_source
from rbft.model_folder import require_model_folder
from rbft.model_store import local_model, on_this_node
from rbft.records import Clip, Example
from rbft.video.pool import DecodePool

Boxes = dict[str, tuple[Box, ...]]
"""Video id -> its boxes."""


GROUNDING_MODEL = "qwen2_5_vl"
"""`model_type` of the models that answer with boxes in the form that is read (`rbft.evaluation.looking.grounding`)."""


def model_type(run: Run) -> str:
    """Of the base model, as in its config.json."""
    return require_model_folder(local_model(run.config.model.path)).model_type


def check_boxes(run: Run) -> None:
    """See that `evaluation.masking` can give boxes for the held-out videos, before anything is trained.

    Raises:
        ConfigError: grounding with a model that does not answer with boxes, or without a disk that all nodes share.
        DataError: a file without a single box of these videos.
    """
    masking = run.config.evaluation.masking
    if masking.boxes is not None:
        ids = [example.id for example in held_out(run)]
        known = read_boxes(masking.boxes)
        if known.keys().isdisjoint(ids):
            raise DataError(
                f"{masking.boxes}: has boxes of {len(known)} videos, e.g. {min(known)!r}, and of none of the {len(ids)} that are tested "
                f"on, e.g. {ids[0]!r}; give boxes with the manifest's ids"
            )
    elif masking.find == "grounding":
        if (kind := model_type(run)) != GROUNDING_MODEL:
            raise ConfigError(
                f"evaluation.masking.find: grounding asks a model that answers with boxes ({GROUNDING_MODEL}), and "
                f"{run.config.model.path} is of type {kind}; set it to saliency, or give evaluation.masking.boxes"
            )
        if not storage.is_local(run.layout.root):
            raise ConfigError(
                "evaluation.masking.find: grounding writes a file of boxes, and needs output_dir on a disk that all nodes share"
            )


def find_boxes(run: Run) -> None:
    """See that boxes can be had without asking a model: where `evaluation.masking` says grounding, the base model finds them now, once for
    all systems, and the run's configuration then names their file. Raises as `check_boxes`."""
    check_boxes(run)
    masking = run.config.evaluation.masking
    if masking.boxes is None and masking.find == "grounding":
        run.change_evaluation(masking=masking.model_copy(update={"boxes": _grounded(run)}))


def boxes_file(run: Run) -> str:
    """The file of boxes that the base model finds in the held-out videos, there or not."""
    config = run.config
    determines = {
        "kind": "grounded boxes",
        "model": run.model_fingerprint,
        "num_objects": config.evaluation.masking.num_objects,
        "video": asdict(config.video.spec()),
        "videos": [video_key(example) for example in held_out(run)],
    }
    return str(storage.local_path(run.layout.looking("boxes", artifacts.fingerprint(determines))).with_suffix(".parquet"))


def _grounded(run: Run) -> str:
    """The same, there."""
    config, examples, path = run.config, held_out(run), Path(boxes_file(run))
    if not path.exists():
        folder = str(path.with_suffix(""))
        done = rows.done_ids(folder, found_schema(), errors_too=False)
        pending = [example for example in examples if example.id not in done]
        if pending:
            say(f"boxes: asking the base model where the objects of {len(pending)} videos are")
            _task(config, _ground, config, config.evaluation.engine, pending, folder)
        table = rows.read_parts(folder, found_schema())
        found = boxes_from_table(table)
        if not any(found.values()):
            raise JobError(
                f"the base model found no object in any of {len(examples)} videos; give evaluation.masking.boxes, or find: saliency"
            )
        say(
            f"boxes: in {sum(map(bool, found.values()))} of {len(examples)} videos; {pc.sum(table['num_unreadable']).as_py()} answers were "
            f"not the JSON asked for, {len(table) - table['error_code'].null_count} videos could not be asked about"
        )
        write_boxes(path.with_suffix(".new"), found).replace(path)
    return str(path)


def _ground(config: RunConfig, engine_name: EngineName, examples: Sequence[Example], folder: str) -> None:
    async def ground() -> None:
        engine = start_engine(config, engine_name, config.model)
        try:
            await ground_videos(engine, config, examples, folder)
        finally:
            engine.close()

    asyncio.run(ground())


async def ground_videos(engine: Engine, config: RunConfig, examples: Sequence[Example], folder: str) -> None:
    """What `engine`'s model finds in `examples`, as a part of `folder` (`found_schema`) for each, at once: an engine may die.

    A video that cannot be read or asked about becomes an error row. Raises `EngineGoneError`.
    """
    places = asyncio.Semaphore(config.engine.max_num_seqs)

    async def find(example: Example) -> None:
        source = GroundedBoxes(engine, config.evaluation.masking.num_objects)
        boxes: tuple[Box, ...] = ()
        error_code: str | None = None
        async with places:
            try:
                clip = await pool.decode_async(example.uri, config.video.spec(), example.start_s, example.end_s)
                boxes = await source.boxes(example.id, clip)
            except EngineGoneError:
                raise
            except RBFTError as error:
                error_code = error.code
        rows.write_part(folder, found_table(example.id, boxes, source.num_unreadable, error_code))

    with DecodePool(config.engine.decode_workers, config.video.timeout_s, config.video.memory_limit_bytes) as pool:
        await asyncio.gather(*(find(example) for example in examples))


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
    maps = {system: attention_maps(run, system, examples) for system in systems}
    say(f"attention: comparing it with the boxes of {len(examples)} videos")
    found: dict[str, Looks] = _task(config, measure_looks, config, examples, maps, frozenset(shown))
    return found


def measure_looks(
    config: RunConfig, examples: Sequence[Example], maps: Mapping[str, Mapping[str, AttentionMap]], shown: frozenset[str]
) -> dict[str, Looks]:
    """System -> its `maps` (system -> video -> map) against the boxes of those of `examples` that can be decoded."""
    boxes, clips = _find(config, examples)
    num_objects = config.evaluation.masking.num_objects
    others = boxes_of_others(boxes)
    found = {}
    for system, of_system in maps.items():
        read = {id_: each for id_, each in of_system.items() if id_ in clips}
        here, elsewhere = (focuses(read, clips, of, num_objects) for of in (boxes, others))
        found[system] = Looks(
            here, elsewhere, {id_: read[id_] for id_ in read if id_ in shown}, {id_: boxes[id_] for id_ in boxes if id_ in shown}
        )
    return found


def attention_maps(run: Run, system: str, examples: Sequence[Example]) -> dict[str, AttentionMap]:
    """Id -> where the model of `system` looks on each of `examples` that can be decoded; kept beside its predictions."""
    kept = artifacts.fingerprint(run.config.evaluation.attention.model_dump(mode="json", exclude={"num_shown"}))
    folder = f"{run.artifact(f'evaluation/{system}')}/attention-{kept}"
    done = rows.done_ids(folder, map_schema())
    pending = [example for example in examples if example.id not in done]
    if pending:
        say(f"attention: reading {len(pending)} videos with {system}")
        rows.write_part(folder, _task(run.config, _read_maps, run.config, require_model(run, system), pending))
    wanted = {example.id for example in examples}
    return {id_: each for id_, each in maps_from_table(rows.read_parts(folder, map_schema())).items() if id_ in wanted}


def _read_maps(config: RunConfig, model: ModelConfig, examples: Sequence[Example]) -> pa.Table:
    maps = {example.id: attention for example, attention in _looks(config, model, examples)}
    return maps_table(maps, {example.id: VideoError.code for example in examples if example.id not in maps})


def _find(config: RunConfig, examples: Sequence[Example]) -> tuple[Boxes, dict[str, Clip]]:
    """The boxes of each of `examples` that can be decoded, and its clip without pixels."""
    source = make_source(config.evaluation.masking)
    boxes: Boxes = {}
    clips: dict[str, Clip] = {}
    for example, clip in _decoded(config, examples):
        boxes[example.id] = asyncio.run(source.boxes(example.id, clip))
        # Its times and its size are needed until the end, its pixels are not.
        clips[example.id] = replace(clip, frames_THWC=np.broadcast_to(np.zeros((), dtype=np.uint8), clip.frames_THWC.shape))
    return boxes, clips


def _decoded(config: RunConfig, examples: Sequence[Example]) -> Iterator[tuple[Example, Clip]]:
    """Each of `examples` that can be decoded, with its clip, one at a time."""
    with DecodePool(config.engine.decode_workers, config.video.timeout_s, config.video.memory_limit_bytes) as pool:
        for example in examples:
            with contextlib.suppress(VideoError):
                yield example, pool.decode(example.uri, config.video.spec(), example.start_s, example.end_s)


def _looks(config: RunConfig, model: ModelConfig, examples: Sequence[Example]) -> Iterator[tuple[Example, AttentionMap]]:
    """Each of `examples` that can be decoded, with where `model` looks, one at a time."""
    import torch

    from rbft.evaluation.looking.attention import AttentionReader
    from rbft.models.chat import ChatAdapter
    from rbft.models.load import load_model

    attention, task = config.evaluation.attention, config.task
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = on_this_node(model)
    loaded = load_model(model.path, model.dtype, model.attention).to(device)
    reader = AttentionReader(loaded, ChatAdapter(model.path, config.video.spec()), attention.num_layers)
    for example, clip in _decoded(config, examples):
        messages = task.question_messages(example.context)
        if attention.method == "gradient":
            (found,) = reader.read_gradient([(clip, messages, example.label or task.labels[0])])
        else:
            (found,) = reader.read([(clip, messages)])
        yield example, found


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
