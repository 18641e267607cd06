"""How long the videos of a dataset are and what they come to as model input, and which cannot be used: two frames of each are decoded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from rbft.errors import VideoError
from rbft.records import Example, VideoSpec
from rbft.video.sampling import sample_times, trim, video_tokens

TEMPORAL_PATCH_SIZE = 2
"""Frames in one token, of Qwen2-VL and Qwen2.5-VL."""


@dataclass(frozen=True)
class VideoFacts:
    """One video, after its trim."""

    duration_s: float
    num_frames: int
    """That a model sees of it."""
    num_tokens: int
    """That those come to."""


@dataclass(frozen=True)
class Survey:
    """What `survey_videos` found, by id."""

    facts: dict[str, VideoFacts] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    """Id -> "code: message"."""


def survey_videos(examples: Sequence[Example], spec: VideoSpec | None = None) -> Survey:
    """The facts about every video under `spec`, by ids in the order of `examples`, whose URIs are locations.

    Each is decoded in a child process with a deadline: a file that hangs a decoder must not hang us.
    """
    from rbft.video.pool import DecodePool

    spec = spec or VideoSpec()
    # A pair of frames tells the true length and the size of all frames. At this rate no video asks for more, and none is logged as capped.
    glance = replace(spec, fps=1e-6, min_frames=2, max_frames=2)
    num_workers = os.cpu_count() or 1
    with DecodePool(num_workers) as pool, ThreadPoolExecutor(num_workers) as threads:

        def look(example: Example) -> VideoFacts | str:
            try:
                clip = pool.decode(example.uri, glance, example.start_s, example.end_s)
                start_s, end_s = trim(clip.source_duration_s, example.start_s, example.end_s)
                num_frames = len(sample_times(clip.source_duration_s, example.start_s, example.end_s, spec).times_s)
            except VideoError as error:
                return f"{error.code}: {error}"
            height, width = clip.frames_THWC.shape[1:3]
            tokens = video_tokens(num_frames, height, width, spec.patch_multiple, TEMPORAL_PATCH_SIZE)
            return VideoFacts(end_s - start_s, num_frames, tokens)

        answers = dict(zip([example.id for example in examples], threads.map(look, examples), strict=True))
    return Survey(
        {id: answer for id, answer in answers.items() if isinstance(answer, VideoFacts)},
        {id: answer for id, answer in answers.items() if isinstance(answer, str)},
    )
