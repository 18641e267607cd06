"""How long clips are: after their trims, and only where there is something to look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbft.records import Example
from rbft.video.durations import clip_durations
from tests.samples import write_video


def test_durations_are_those_of_the_trimmed_clips_and_unusable_videos_are_left_out(tmp_path: Path) -> None:
    video = str(write_video(tmp_path / "v.mp4", seconds=6))
    (tmp_path / "empty.mp4").write_bytes(b"")
    found = clip_durations(
        [
            Example("whole", video),
            Example("trimmed", video, start_s=1.0, end_s=-2.0),
            Example("past its end", video, start_s=9.0),
            Example("missing", f"{tmp_path}/none.mp4"),
            Example("empty", f"{tmp_path}/empty.mp4"),
            Example("elsewhere", "s3://bucket/v.mp4"),
        ]
    )
    assert found == {"whole": pytest.approx(6.0, abs=0.1), "trimmed": pytest.approx(3.0, abs=0.1)}
