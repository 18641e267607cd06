"""How long clips are, from the headers of their videos: probed in decoder processes, and kept in a file for the next time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from rbft import storage
from rbft.errors import ArtifactError, VideoError
from rbft.records import Example
from rbft.video.pool import DecodePool
from rbft.video.sampling import trim

_SCHEMA = pa.schema([("uri", pa.string()), ("sha256", pa.string()), ("duration_s", pa.float64())])

Video = tuple[str, str | None]
"""Where it is, and the SHA-256 of its bytes where that is known."""


def clip_durations(examples: Sequence[Example], kept: str, num_workers: int, timeout_s: float, memory_limit_bytes: int) -> dict[str, float]:
    """Id -> seconds that are looked at, after the trim. Videos on other stores, those without a duration and unusable ones are left out.

    The durations of whole videos are kept in the Parquet file `kept`; only videos that are not in it are probed, `num_workers` at a time.
    The other arguments are those of `DecodePool`.
    """
    local = [example for example in examples if "://" not in example.uri]
    known = _read(kept)
    if missing := sorted({_video(example) for example in local} - known.keys(), key=str):
        with DecodePool(num_workers, timeout_s, memory_limit_bytes) as pool, ThreadPoolExecutor(num_workers) as threads:
            found = threads.map(lambda video: _probed(pool, video[0]), missing)
            known |= {video: duration_s for video, duration_s in zip(missing, found, strict=True) if duration_s}
        rows = [{"uri": uri, "sha256": sha256, "duration_s": duration_s} for (uri, sha256), duration_s in known.items()]
        storage.write_table(kept, pa.Table.from_pylist(rows, schema=_SCHEMA))
    durations = {}
    for example in local:
        try:
            start_s, end_s = trim(known[_video(example)], example.start_s, example.end_s)
        except (KeyError, VideoError):  # Scoring it has said so.
            continue
        durations[example.id] = end_s - start_s
    return durations


def _video(example: Example) -> Video:
    return example.uri, example.sha256


def _probed(pool: DecodePool, path: str) -> float | None:
    try:
        return pool.duration_s(path)
    except VideoError:
        return None


def _read(uri: str) -> dict[Video, float]:
    if not storage.exists(uri):
        return {}
    try:
        return {(row["uri"], row["sha256"]): row["duration_s"] for row in storage.read_table(uri, _SCHEMA.names).to_pylist()}
    except ArtifactError:  # Damaged: it is made again.
        return {}
