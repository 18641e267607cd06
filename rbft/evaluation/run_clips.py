"""The frames of a run's videos, by the run's files alone: its manifest says where they are, its configuration how they are sampled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import yaml

from rbft import storage
from rbft.config import VideoConfig
from rbft.data.manifest import read_manifest
from rbft.errors import VideoError
from rbft.layout import RunLayout
from rbft.records import Clip, Example
from rbft.video.pool import DecodePool

_NUM_DECODERS = 2


def read_run_clips(run: str, ids: Sequence[str]) -> dict[str, Clip]:
    """Id -> clip, of those of `ids` that are in the manifest of the run in the folder `run` and can be decoded."""
    layout = RunLayout(run)
    if not ids or not storage.exists(layout.manifest):
        return {}
    by_id = {example.id: example for example in read_manifest(layout.manifest)}
    video = VideoConfig.model_validate(yaml.safe_load(storage.read_bytes(layout.config)).get("video", {}))
    return decode_clips([by_id[id_] for id_ in ids if id_ in by_id], video, _NUM_DECODERS)


def decode_clips(examples: Iterable[Example], video: VideoConfig, num_workers: int) -> dict[str, Clip]:
    """Id -> clip, of those of `examples` that can be decoded; a page shows the others without frames."""
    clips = {}
    with DecodePool(num_workers, video.timeout_s, video.memory_limit_bytes) as pool:
        for example in examples:
            with contextlib.suppress(VideoError):
                clips[example.id] = pool.decode(example.uri, video.spec(), example.start_s, example.end_s)
    return clips
