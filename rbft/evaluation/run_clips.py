"""The frames of a run's videos, by the run's files alone: its manifest says where they are, its configuration how they are sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import yaml

from rbft import storage
from rbft.config import VideoConfig
from rbft.data.manifest import read_manifest
from rbft.errors import VideoError
from rbft.evaluation.thumbnails import thumbnails
from rbft.layout import RunLayout
from rbft.records import Clip, Example
from rbft.video.pool import DecodePool

_NUM_DECODERS = 2

Kept = TypeVar("Kept")


def read_run_clips(run: str, ids: Sequence[str]) -> dict[str, Clip]:
    """Id -> the frames that a page shows (`rbft.evaluation.thumbnails`), of those of `ids` that are in the manifest of the run in the
    folder `run` and can be decoded."""
    layout = RunLayout(run)
    if not ids or not storage.exists(layout.manifest):
        return {}
    by_id = {example.id: example for example in read_manifest(layout.manifest)}
    video = VideoConfig.model_validate(yaml.safe_load(storage.read_bytes(layout.config)).get("video", {}))
    found = decode_clips([by_id[id_] for id_ in ids if id_ in by_id], video, _NUM_DECODERS, thumbnails)
    return {id_: small.clip for id_, small in found.items()}


def decode_clips(examples: Sequence[Example], video: VideoConfig, num_workers: int, keep: Callable[[Clip], Kept]) -> dict[str, Kept]:
    """Id -> what `keep` takes of the clip, of those of `examples` that can be decoded; a page shows the others without frames.

    Memory: a whole clip for each of the `num_workers`, and what is kept.
    """
    with DecodePool(num_workers, video.timeout_s, video.memory_limit_bytes) as pool, ThreadPoolExecutor(num_workers) as threads:

        def one(example: Example) -> Kept | None:
            try:
                return keep(pool.decode(example.uri, video.spec(), example.start_s, example.end_s))
            except VideoError:
                return None

        found = zip(examples, threads.map(one, examples), strict=True)
        return {example.id: kept for example, kept in found if kept is not None}
