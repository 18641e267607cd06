"""How long clips are, from the headers of their videos."""

from __future__ import annotations

from collections.abc import Iterable

from rbft.errors import VideoError
from rbft.records import Example
from rbft.video.probe import probe
from rbft.video.sampling import trim


def clip_durations(examples: Iterable[Example]) -> dict[str, float]:
    """Id -> seconds that are looked at, after the trim. Videos on other stores, those without a duration and unusable ones are left out."""
    found = {}
    for example in examples:
        if "://" in example.uri:
            continue
        try:
            duration_s = probe(example.uri).duration_s
            if duration_s:
                start_s, end_s = trim(duration_s, example.start_s, example.end_s)
                found[example.id] = end_s - start_s
        except VideoError:  # Scoring it has said so.
            continue
    return found
