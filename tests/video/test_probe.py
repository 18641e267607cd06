"""What is let in, and what each refusal is called."""

from __future__ import annotations

import av
import numpy as np
import pytest
from PIL import Image

from rbft.errors import NoVideoStreamError, VideoDecodeError, VideoEmptyError, VideoFormatError, VideoMissingError
from rbft.video.probe import probe


def test_an_ordinary_video_is_described(plain):
    info = probe(plain)
    assert (info.codec, info.height, info.width, info.fps, info.num_frames) == ("h264", 112, 168, 10.0, 80)
    assert info.duration_s == pytest.approx(8.0)
    assert info.is_upright and info.num_video_streams == 1


@pytest.mark.parametrize(("counterclockwise_deg", "clockwise_deg"), [(0, 0), (90, 270), (180, 180), (270, 90)])
def test_rotation_is_read_from_the_display_matrix(write_video, counterclockwise_deg, clockwise_deg):
    info = probe(write_video(num_frames=2, rotate_deg=counterclockwise_deg))
    assert info.rotation_deg == clockwise_deg
    assert info.is_upright == (clockwise_deg == 0)


def test_a_missing_file_becomes_video_missing_error(tmp_path):
    with pytest.raises(VideoMissingError, match=r"nowhere\.mp4: no such file"):
        probe(tmp_path / "nowhere.mp4")


def test_a_name_that_cannot_be_one_becomes_video_missing_error():
    with pytest.raises(VideoMissingError):
        probe("a\0b.mp4")


def test_an_empty_file_becomes_video_empty_error(tmp_path):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoEmptyError, match=r"empty\.mp4: has no bytes"):
        probe(tmp_path / "empty.mp4")


def test_a_folder_becomes_video_format_error(tmp_path):
    with pytest.raises(VideoFormatError, match="is a folder"):
        probe(tmp_path)


def test_text_and_pictures_become_video_format_error(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(tmp_path / "picture.png")
    for name in ("text.mp4", "picture.png"):
        with pytest.raises(VideoFormatError, match="not of a format we open"):
            probe(tmp_path / name)


@pytest.mark.parametrize("name", ["hls.mp4", "hls.ts", "ffconcat.mp4"])
def test_a_playlist_becomes_video_format_error_whatever_its_name(playlists, name):
    with av.open(str(playlists["ffconcat.mp4"])) as container:  # without the allow-list, another file's frames would come out
        assert next(container.decode(video=0)).width == 168
    with pytest.raises(VideoFormatError, match="not of a format we open"):
        probe(playlists[name])


def test_a_name_that_is_a_protocol_to_ffmpeg_is_a_name(plain):
    with pytest.raises(VideoMissingError):
        probe(f"concat:{plain}|{plain}")
    with pytest.raises(VideoMissingError):
        probe("http://localhost/video.mp4")


def test_a_codec_off_the_list_becomes_video_format_error(write_video):
    with pytest.raises(VideoFormatError, match="codec ffv1 is not one we decode"):
        probe(write_video("lossless.mkv", codec="ffv1", num_frames=2))


def test_audio_alone_becomes_no_video_stream_error(audio_only):
    with pytest.raises(NoVideoStreamError, match="holds no video, only audio"):
        probe(audio_only)


def test_a_file_without_its_header_becomes_video_decode_error(plain, tmp_path):
    (tmp_path / "cut.mp4").write_bytes(plain.read_bytes()[:1000])  # the index of an MP4 is at its end
    with pytest.raises(VideoDecodeError, match="cut short or corrupt"):
        probe(tmp_path / "cut.mp4")
