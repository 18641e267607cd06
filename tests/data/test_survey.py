"""What a glance at each video tells: its length after the trim, frames and tokens as a model sees them, or why it cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbft.data.survey import VideoFacts, survey_videos
from rbft.records import Example, VideoSpec
from rbft.video.decode import decode
from tests.samples import write_video


def test_facts_are_those_of_the_decoded_clip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    video = str(write_video(tmp_path / "v.mp4", seconds=45))
    trims = {"whole": (None, None), "end": (None, -40.5), "start": (12.0, None), "both": (3.0, 10.0)}
    spec = VideoSpec(max_frames=32, max_pixels=784 * 2)
    survey = survey_videos([Example(id, video, start_s=start, end_s=end) for id, (start, end) in trims.items()], spec)
    assert survey.unusable == {}
    assert {id: facts.duration_s for id, facts in survey.facts.items()} == pytest.approx(
        {"whole": 45, "end": 4.5, "start": 33, "both": 7}, abs=0.01
    )
    assert caplog.text == "", "a glance is not a clip whose frames were capped"
    for id, (start, end) in trims.items():
        num_frames, height, width, _ = decode(video, spec, start, end).frames_THWC.shape
        facts = survey.facts[id]
        assert (facts.num_frames, facts.num_tokens) == (num_frames, num_frames // 2 * (height // 28) * (width // 28))


def test_what_cannot_be_used_is_told_with_its_code(tmp_path: Path) -> None:
    good = write_video(tmp_path / "good.mp4", seconds=4)
    (tmp_path / "empty.mp4").touch()
    survey = survey_videos(
        [
            Example("good", str(good)),
            Example("empty", str(tmp_path / "empty.mp4")),
            Example("gone", str(tmp_path / "gone.mp4")),
            Example("cut away", str(good), end_s=-20.0),
        ]
    )
    assert survey.facts == {"good": VideoFacts(4.0, 4, 8)}
    assert {id: why.split(":")[0] for id, why in survey.unusable.items()} == {
        "empty": "video_empty", "gone": "video_missing", "cut away": "video_trim",
    }  # fmt: skip
