"""One video to one clip: the right frames, at their true times, upright, of the right size, by either decoder."""

from __future__ import annotations

import logging

import av
import numpy as np
import pytest

from rbft.errors import NoVideoStreamError, VideoDecodeError, VideoFormatError, VideoTrimError
from rbft.records import VideoSpec
from rbft.video.decode import decode
from rbft.video.index import read_index
from rbft.video.pixels import EXACT
from tests.video.conftest import brightness, picture

AUTO = VideoSpec()
PYAV = VideoSpec(backend="pyav")
DECORD = VideoSpec(backend="decord")


def frames_shown(clip) -> list[int]:
    """The number of each frame, read back from its brightness at the bottom right."""
    _, height, width, _ = clip.frames_THWC.shape
    values = clip.frames_THWC[:, height * 3 // 4, width * 3 // 4].mean(axis=1)
    return [int(np.argmin([abs(value - brightness(i)) for i in range(40)])) for value in values]


@pytest.mark.parametrize("spec", [AUTO, PYAV, DECORD], ids=lambda spec: spec.backend)
def test_eight_seconds_at_one_fps_are_exactly_the_frames_at_0_to_7(write_video, spec):
    clip = decode(write_video(num_frames=8, fps=1, g="4", bf="2"), spec)
    assert frames_shown(clip) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert list(clip.timestamps_s) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert (clip.fps, clip.source_fps, clip.source_duration_s) == (1.0, 1.0, 8.0)
    assert clip.frames_THWC.shape == (8, 112, 168, 3) and clip.frames_THWC.dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "codec", "options", "specs"),
    [
        ("a.mp4", "libx264", {}, [AUTO, DECORD]),
        ("a.mkv", "libx264", {"g": "7"}, [AUTO, DECORD]),
        ("a.mp4", "libx265", {"x265_params": "open-gop=0:log-level=none:pools=none"}, [AUTO, DECORD]),
        ("a.webm", "libvpx-vp9", {"deadline": "realtime", "cpu_used": "8"}, [AUTO, DECORD]),
        ("a.webm", "libvpx", {"deadline": "realtime", "cpu_used": "8"}, [AUTO, DECORD]),
        ("a.mp4", "libsvtav1", {"preset": "12", "svtav1_params": "lp=1"}, [AUTO]),
        ("a.mp4", "mpeg4", {"b": "5M", "qmax": "3"}, [AUTO, DECORD]),
        ("a.avi", "mpeg4", {"b": "5M", "qmax": "3"}, [AUTO]),
        ("a.ts", "libx264", {}, [AUTO]),
        ("a.mpg", "mpeg2video", {"pix_fmt": "yuv420p", "fps": 25, "num_frames": 200}, [AUTO]),
    ],
)
def test_every_codec_gives_the_frame_of_each_second(write_video, name, codec, options, specs):
    options = {"num_frames": 80, "fps": 10} | options
    path = write_video(name, codec=codec, **options)
    for spec in specs:
        clip = decode(path, spec)
        assert clip.backend == ("decord" if spec is DECORD else "pyav")
        assert frames_shown(clip) == [options["fps"] * second % 40 for second in range(8)]
        assert clip.timestamps_s == pytest.approx(range(8), abs=0.02)
        assert clip.fps == 1.0


@pytest.mark.parametrize(
    ("options", "max_mean_difference"),
    [
        ({}, 0),
        ({"rotate_deg": 90}, 0),
        ({"g": "250"}, 0),
        # Resized: decord's own conversion to RGB rounds down and repeats chroma, which comes to 0.9 to 1.5 on real pictures.
        ({"size": (241, 321), "pix_fmt": "yuv444p"}, 2),
        ({"size": (480, 640)}, 2),
        ({"size": (480, 640), "rotate_deg": 90}, 2),
    ],
)
def test_both_decoders_give_the_same_pixels_and_times(write_video, options, max_mean_difference):
    path = write_video(num_frames=60, bf="3", **options)
    by_pyav, by_decord = decode(path, PYAV), decode(path, DECORD)
    assert (by_pyav.backend, by_decord.backend) == ("pyav", "decord")
    assert by_pyav.frames_THWC.shape == by_decord.frames_THWC.shape
    assert np.abs(by_pyav.frames_THWC.astype(int) - by_decord.frames_THWC).mean() <= max_mean_difference
    assert by_pyav.timestamps_s == by_decord.timestamps_s


def test_frames_after_a_jump_are_those_of_a_whole_decode_even_with_open_groups(write_video):
    """x265 opens its groups by default; decord takes such frames from the wrong references, so `auto` must not use it there."""
    path = write_video(codec="libx265", num_frames=80, x265_params="keyint=8:min-keyint=8:open-gop=1:bframes=3:log-level=none:pools=none")
    assert read_index(path).has_open_groups
    with av.open(str(path)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    clip = decode(path, AUTO)
    assert clip.backend == "pyav"
    np.testing.assert_array_equal(clip.frames_THWC, [whole[10 * second] for second in range(8)])
    with pytest.raises(VideoDecodeError, match="open groups of pictures"):
        decode(path, DECORD)


@pytest.mark.parametrize("counterclockwise_deg", [90, 180, 270])
def test_a_rotated_video_comes_out_as_a_player_shows_it(write_video, counterclockwise_deg):
    clip = decode(write_video(num_frames=8, fps=1, size=(112, 168), rotate_deg=counterclockwise_deg), AUTO)
    shown = np.rot90(picture(3, 112, 168), counterclockwise_deg // 90)
    assert clip.frames_THWC.shape[1:] == shown.shape
    assert np.abs(clip.frames_THWC[3].astype(int) - shown).mean() < 5


def test_a_mirrored_video_is_mirrored_back_and_not_given_to_decord(write_video):
    path = write_video(num_frames=8, fps=1, mirror=True)
    assert np.abs(decode(path, AUTO).frames_THWC[3].astype(int) - picture(3, 112, 168)[:, ::-1]).mean() < 5
    with pytest.raises(VideoFormatError, match="stored mirrored"):
        decode(path, DECORD)


def test_a_size_that_fits_is_not_resized_and_another_is_resized_like_torchvision(write_video):
    import torch
    from torch.nn.functional import interpolate

    path = write_video(num_frames=8, fps=1, size=(480, 640), crf="18")
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    whole = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    exact = np.stack([frame.to_ndarray(format="rgb24", interpolation=EXACT) for frame in frames])
    as_it_is = decode(path, VideoSpec(max_pixels=480 * 640, patch_multiple=32))
    np.testing.assert_array_equal(as_it_is.frames_THWC, whole)
    clip = decode(path, AUTO)
    assert clip.frames_THWC.shape[1:3] == (336, 448)
    # What torchvision's resize, and so Qwen's video processor, does with uint8.
    theirs = interpolate(torch.from_numpy(exact).permute(0, 3, 1, 2), (336, 448), mode="bicubic", antialias=True).permute(0, 2, 3, 1)
    difference = np.abs(clip.frames_THWC.astype(int) - theirs.numpy())
    assert difference.mean() < 0.3 and difference.max() <= 32  # the most at edges of colour, where FFmpeg scales chroma by itself


def test_variable_frame_times_are_the_true_ones(write_video):
    times_ms = [0, 100, 900, 1100, 2000, 2050, 2900, 5500, 6100, 7000, 7400, 7600]
    clip = decode(write_video(num_frames=12, times_ms=times_ms, bf="0"), AUTO)
    # At each second the last frame that had appeared by then.
    assert clip.timestamps_s == pytest.approx([0, 0.9, 2.0, 2.9, 2.9, 2.9, 5.5, 7.0], abs=2e-3)
    assert frames_shown(clip) == [0, 2, 4, 6, 6, 6, 7, 9]


@pytest.mark.parametrize("spec", [PYAV, DECORD], ids=lambda spec: spec.backend)
def test_a_trimmed_clip_holds_only_frames_of_the_trim(plain, spec):
    clip = decode(plain, spec, start_s=2.0, end_s=5.0)
    assert clip.timestamps_s == pytest.approx([2.0, 3.0, 4.0, 4.9])
    assert frames_shown(clip) == [20, 30, 0, 9]  # 40 and 49, brightness has a period of 40
    assert clip.source_duration_s == pytest.approx(8.0)


def test_a_trim_past_the_end_becomes_video_trim_error(plain):
    with pytest.raises(VideoTrimError, match="leaves nothing"):
        decode(plain, AUTO, start_s=9.0)


def test_a_short_clip_is_sampled_more_densely_and_says_so(write_video):
    clip = decode(write_video(num_frames=10, fps=10), AUTO)
    assert clip.fps == 4.0
    assert frames_shown(clip) == [0, 2, 5, 7]


def test_a_single_frame_is_repeated(write_video):
    clip = decode(write_video(num_frames=1, fps=10), AUTO)
    assert clip.num_frames == 4
    assert clip.timestamps_s == (0, 0, 0, 0)


def test_a_cap_thins_the_samples_and_is_logged(plain, caplog):
    with caplog.at_level(logging.WARNING):
        clip = decode(plain, VideoSpec(max_frames=4))
    assert frames_shown(clip) == [0, 20, 0, 20]
    assert clip.fps == 0.5
    assert "frames capped" in caplog.text and "wanted=8" in caplog.text


def test_ten_bits_odd_sizes_and_alpha_are_read(write_video):
    for options in (
        {"pix_fmt": "yuv420p10le"},
        {"pix_fmt": "yuv444p", "size": (121, 173)},
        {"name": "alpha.webm", "codec": "libvpx-vp9", "pix_fmt": "yuva420p", "deadline": "realtime", "cpu_used": "8"},
    ):
        clip = decode(write_video(num_frames=8, fps=1, **options), AUTO)
        assert frames_shown(clip) == list(range(8)), options


def test_frames_without_presentation_times_are_counted(write_video):
    """H.264 with B-frames in AVI: its packets have decoding times only."""
    clip = decode(write_video("b.avi", num_frames=80, bf="3"), AUTO)
    assert frames_shown(clip) == [10 * second % 40 for second in range(8)]
    assert clip.timestamps_s == pytest.approx(range(8), abs=0.11)


def test_times_count_from_the_first_frame_wherever_the_file_begins(write_video):
    path = write_video("late.ts", container_options={"output_ts_offset": "100"})
    assert decode(path, AUTO).timestamps_s == pytest.approx(range(8))


def test_a_stream_that_changes_its_size_gives_frames_of_one_size(write_video, tmp_path):
    first = write_video("a.ts", num_frames=40, bf="0", container_options={"output_ts_offset": "0"})
    second = write_video("b.ts", num_frames=40, bf="0", size=(240, 320), container_options={"output_ts_offset": "4"})
    (tmp_path / "both.ts").write_bytes(first.read_bytes() + second.read_bytes())
    clip = decode(tmp_path / "both.ts", AUTO)
    assert clip.frames_THWC.shape == (8, 112, 168, 3)
    assert frames_shown(clip) == [0, 10, 20, 30, 0, 10, 20, 30]


@pytest.mark.parametrize("faststart", [False, True])
def test_a_truncated_file_becomes_video_decode_error(write_video, tmp_path, faststart):
    whole = write_video(container_options={"movflags": "faststart"} if faststart else {}, size=(240, 320)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(VideoDecodeError, match=r"cut\.mp4: .*cut short"):
        decode(tmp_path / "cut.mp4", AUTO)


def test_a_corrupt_middle_costs_its_frames_and_a_corrupt_whole_the_video(write_video, tmp_path):
    whole = bytearray(write_video("a.mkv", size=(240, 320), g="10", crf="1").read_bytes())
    middle = len(whole) // 2
    damaged = whole.copy()
    damaged[middle : middle + 400] = bytes(400)
    (tmp_path / "scratched.mkv").write_bytes(damaged)
    assert decode(tmp_path / "scratched.mkv", AUTO).num_frames == 8
    damaged[2000:-2000] = np.random.default_rng(0).bytes(len(whole) - 4000)
    (tmp_path / "shredded.mkv").write_bytes(damaged)
    with pytest.raises(VideoDecodeError, match=r"shredded\.mkv: "):
        decode(tmp_path / "shredded.mkv", AUTO)


def test_decord_is_given_nothing_that_an_old_ffmpeg_could_take_for_a_playlist(write_video, playlists):
    with pytest.raises(VideoFormatError):
        decode(playlists["ffconcat.mp4"], DECORD)
    with pytest.raises(VideoFormatError, match="decord is not given"):
        decode(write_video("a.avi", codec="mpeg4", num_frames=8), DECORD)
    with pytest.raises(VideoFormatError, match="decord is not given av1"):
        decode(write_video(codec="libsvtav1", num_frames=8, preset="12", svtav1_params="lp=1"), DECORD)


def test_audio_alone_becomes_no_video_stream_error(audio_only):
    with pytest.raises(NoVideoStreamError):
        decode(audio_only, AUTO)
