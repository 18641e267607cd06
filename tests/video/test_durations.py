"""How long clips are: after their trims, and only where there is something to look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rbft.records import Example
from rbft.video.durations import clip_durations
from tests.samples import write_video


def durations(examples: list[Example], folder: Path) -> dict[str, float]:
    return clip_durations(examples, f"{folder}/durations.parquet", 2, 60, 4 << 30)


def test_a_video_that_was_probed_once_is_not_probed_again(tmp_path: Path) -> None:
    one, other = (Example(name, str(write_video(tmp_path / f"{name}.mp4", seconds=4)), sha256="ab") for name in ("one", "other"))
    first = durations([one], tmp_path)
    Path(one.uri).write_bytes(b"")
    both = durations([one, other], tmp_path)
    assert both["one"] == first["one"] and both.keys() == {"one", "other"}
    assert durations([replace(one, sha256="cd")], tmp_path) == {}  # other bytes
    (tmp_path / "durations.parquet").write_bytes(b"damaged")
    assert durations([one, other], tmp_path) == {"other": both["other"]}


def test_durations_are_those_of_the_trimmed_clips_and_unusable_videos_are_left_out(tmp_path: Path) -> None:
    video = str(write_video(tmp_path / "v.mp4", seconds=6))
    (tmp_path / "empty.mp4").write_bytes(b"")
    found = durations(
        [
            Example("whole", video),
            Example("trimmed", video, start_s=1.0, end_s=-2.0),
            Example("past its end", video, start_s=9.0),
            Example("missing", f"{tmp_path}/none.mp4"),
            Example("empty", f"{tmp_path}/empty.mp4"),
            Example("elsewhere", "s3://bucket/v.mp4"),
        ],
        tmp_path,
    )
    assert found == {"whole": pytest.approx(6.0, abs=0.1), "trimmed": pytest.approx(3.0, abs=0.1)}
