"""Sampling arithmetic: which moments, what size."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rbft.errors import VideoTrimError
from rbft.records import VideoSpec
from rbft.video.sampling import fit_size, sample_times, trim

SPEC = VideoSpec()
durations_s = st.floats(0.01, 100_000)


def test_eight_seconds_at_one_fps_are_the_frames_at_0_to_7():
    samples = sample_times(8.0, None, None, SPEC)
    assert list(samples.times_s) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert samples.fps == 1.0


@pytest.mark.parametrize(
    ("duration_s", "num_frames", "fps"),
    [
        (8.02, 8, 1.0),  # a last audio packet does not make a frame
        (9.0, 10, 1.0),  # odd: the last frame once more, nothing of the clip unseen
        (9.4, 10, 1.0),
        (3.0, 4, 1.0),
        (2.0, 4, 2.0),  # too short for four frames at 1 FPS
        (0.5, 4, 8.0),
        (256.0, 128, 0.5),  # twice too long for 128 frames
    ],
)
def test_counts_and_true_rates(duration_s, num_frames, fps):
    samples = sample_times(duration_s, None, None, SPEC)
    assert len(samples.times_s) == num_frames
    assert samples.fps == pytest.approx(fps)


def test_a_trimmed_clip_is_sampled_from_its_start():
    assert sample_times(20.0, 3.5, 9.5, SPEC).times_s == (3.5, 4.5, 5.5, 6.5, 7.5, 8.5)


def test_an_end_past_the_end_of_the_video_is_the_end_of_the_video():
    assert sample_times(8.0, None, 99.0, SPEC) == sample_times(8.0, None, None, SPEC)


@pytest.mark.parametrize(("start_s", "end_s"), [(8.0, None), (5.0, 5.0), (6.0, 2.0), (-1.0, None), (float("nan"), None), (None, 0.0)])
def test_a_trim_that_leaves_nothing_is_an_error(start_s, end_s):
    with pytest.raises(VideoTrimError, match="leaves nothing of a video of 8"):
        sample_times(8.0, start_s, end_s, SPEC)


@given(durations_s, st.floats(0.1, 8), st.integers(2, 16), st.integers(8, 64))
def test_samples_are_even_in_number_uniform_and_within_bounds(duration_s, fps, min_frames, more):
    spec = VideoSpec(fps=fps, min_frames=min_frames, max_frames=min_frames + more)
    samples = sample_times(duration_s, None, None, spec)
    count = len(samples.times_s)
    assert count % 2 == 0 and min_frames <= count <= spec.max_frames
    assert samples.times_s == pytest.approx([i / samples.fps for i in range(count)])
    # Every moment of the clip is within one sampling interval of a sample, but no more than one sample lies past the end.
    assert samples.times_s[-2] < duration_s <= (samples.times_s[-1] + 1.5 / samples.fps) * (1 + 1e-9)


@given(durations_s)
def test_the_rate_is_the_asked_one_unless_the_clip_is_too_short_or_too_long(duration_s):
    samples = sample_times(duration_s, None, None, SPEC)
    assert samples.is_capped == (samples.fps < 1.0)
    if 2.5 <= duration_s < 128.5:  # three to 128 frames are wanted, three made four
        assert samples.fps == 1.0
    else:
        assert samples.fps == pytest.approx(len(samples.times_s) / duration_s)


sides = st.integers(1, 8000)
specs = st.builds(
    lambda factor, least, most: VideoSpec(patch_multiple=factor, min_pixels=least * factor**2, max_pixels=(least + most) * factor**2),
    st.sampled_from([14, 28, 32]),
    st.integers(1, 16),
    st.integers(100, 1000),
)


@given(sides, sides, specs)
def test_a_fitted_size_is_a_multiple_within_the_area(height, width, spec):
    fitted = fit_size(height, width, spec)
    assert all(side > 0 and side % spec.patch_multiple == 0 for side in fitted)
    assert fitted[0] * fitted[1] <= spec.max_pixels
    assert fit_size(*fitted, spec) == fitted or fitted[0] * fitted[1] < spec.min_pixels


@given(sides, sides, specs)
@settings(deadline=None)  # the first example imports transformers
def test_a_fitted_size_is_that_of_transformers(height, width, spec):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    assume(max(height, width) <= 200 * min(height, width))
    theirs = smart_resize(height, width, factor=spec.patch_multiple, min_pixels=spec.min_pixels, max_pixels=spec.max_pixels)
    assume(theirs[0] * theirs[1] <= spec.max_pixels)  # theirs passes it for the thinnest strips
    assert fit_size(height, width, spec) == theirs


@given(sides, sides, specs)
@settings(deadline=None)  # the first example imports transformers
def test_transformers_leaves_a_fitted_size_alone(height, width, spec):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    fitted = fit_size(height, width, spec)
    assume(max(fitted) <= 200 * min(fitted) and fitted[0] * fitted[1] >= spec.min_pixels)
    assert smart_resize(*fitted, factor=spec.patch_multiple, min_pixels=spec.min_pixels, max_pixels=spec.max_pixels) == fitted


@pytest.mark.parametrize(
    ("height", "width", "fitted"),
    [
        (720, 1280, (280, 504)),
        (360, 420, (336, 420)),
        (1080, 1920, (280, 504)),
        (1280, 720, (504, 280)),
        (112, 112, (112, 112)),
        (10, 10, (28, 28)),
    ],
)
def test_sizes_of_the_paper_profile(height, width, fitted):
    assert fit_size(height, width, SPEC) == fitted


def test_a_negative_end_counts_from_the_end_of_the_video():
    assert trim(30.0, None, -20.0) == (0.0, 10.0)
    with pytest.raises(VideoTrimError):
        trim(15.0, None, -20.0)
