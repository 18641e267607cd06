from pathlib import Path

import pytest

from rbft import storage
from rbft.data.locations import VideosByName, list_videos, resolve_uri
from rbft.errors import DataError


@pytest.mark.parametrize(
    ("uri", "base", "expected"),
    [
        ("a.mp4", "/videos", "/videos/a.mp4"),
        ("../b/a.mp4", "/videos/x", "/videos/b/a.mp4"),
        ("/other/a.mp4", "/videos", "/other/a.mp4"),
        ("-a.mp4", "/videos", "/videos/-a.mp4"),
        ("a b/ü.mp4", "/videos", "/videos/a b/ü.mp4"),
        ("a.mp4", "s3://bucket/videos/", "s3://bucket/videos/a.mp4"),
        ("a #1, 100%?.mp4", "s3://bucket/videos", "s3://bucket/videos/a %231, 100%25%3F.mp4"),
        ("/disk/a.mp4", "s3://bucket/videos", "/disk/a.mp4"),
        ("gs://bucket/a.mp4", "/videos", "gs://bucket/a.mp4"),
        ("file:///disk/a%20b.mp4", "/videos", "/disk/a b.mp4"),
        ("a.mp4", "file:///disk", "/disk/a.mp4"),
    ],
)
def test_a_uri_resolves_against_its_base(uri, base, expected):
    assert resolve_uri(uri, base) == expected


def test_a_relative_base_becomes_an_absolute_path_so_that_no_name_looks_like_an_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("-x.mp4", ".") == str(tmp_path / "-x.mp4")


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_videos_are_listed_at_any_depth_by_extension_whatever_its_case(tmp_path):
    _touch(tmp_path, "b.MP4", "deep/er/a.webm", "notes.txt", "._b.mp4", "mp4")
    assert list_videos(tmp_path) == {"b.MP4": str(tmp_path / "b.MP4"), "deep/er/a.webm": str(tmp_path / "deep/er/a.webm")}


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        list_videos(tmp_path / "nowhere")


def test_a_video_is_found_by_its_id_and_a_missing_one_gets_the_place_where_it_is_expected(tmp_path):
    _touch(tmp_path, "x/-a.b.mkv", "twin.mp4", "x/twin.mov")
    videos = VideosByName(tmp_path)
    assert videos.locate("-a.b") == str(tmp_path / "x/-a.b.mkv")
    assert videos.locate("gone") == str(tmp_path / "gone.mp4")
    assert "gone" not in videos
    with pytest.raises(DataError, match="several videos are called 'twin'"):
        videos.locate("twin")


def test_a_video_is_found_by_its_name_or_alone_in_a_folder_of_that_name(tmp_path):
    _touch(tmp_path, "-a/A title.mp4", "b/one.mp4", "b/two.mp4", "c/c.mp4", "d/x.mp4", "d.webm")
    videos = VideosByName(tmp_path)
    assert videos.locate("-a") == str(tmp_path / "-a" / "A title.mp4")
    assert videos.locate("A title") == videos.locate("-a")
    assert "b" not in videos, "which of the two is meant?"
    assert videos.locate("c") == str(tmp_path / "c" / "c.mp4")
    assert videos.locate("d") == str(tmp_path / "d.webm")


def test_a_name_in_a_store_may_have_what_means_something_in_a_uri(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # else the bucket's region is asked for
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    _, path = storage.filesystem(resolve_uri("a #1, 100%25?.mp4", "s3://bucket/videos"))
    assert path == "bucket/videos/a #1, 100%25?.mp4"
