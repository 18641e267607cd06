"""Files whole or not at all, on any filesystem; errors that name the path and keep its secrets."""

from __future__ import annotations

import errno
import io
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pytest

from rbft import storage
from rbft.errors import ArtifactError, VideoMissingError

SIGNED = "s4://bucket/a.mp4?signature=secret"


@pytest.fixture(params=["", "file://"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder as a path and as a URI."""
    return f"{request.param}{tmp_path}"


def test_what_is_written_is_read_back_and_replaced(root: str) -> None:
    for content in (b"first", b"second"):
        storage.write_bytes(f"{root}/new/folder/file", content)
        assert storage.read_bytes(f"{root}/new/folder/file") == content
    storage.write_json(f"{root}/value.json", {"ü": [1, None]})
    assert storage.read_json(f"{root}/value.json") == {"ü": [1, None]}


def test_bytes_are_kept_as_they_are_whatever_the_name_ends_with(root: str) -> None:
    storage.write_bytes(f"{root}/plain.gz", b"not compressed")
    assert storage.read_bytes(f"{root}/plain.gz") == b"not compressed"


def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("old")
    with pytest.raises(ArtifactError, match=f"{tmp_path}/taken: cannot be written"):
        storage.write_bytes(f"{tmp_path}/taken", b"new")
    with pytest.raises(ArtifactError, match=f"{tmp_path}/taken/file/below: cannot be written"):
        storage.write_bytes(f"{tmp_path}/taken/file/below", b"new")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["taken", "taken/file"]


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    """As on a full disk: the file is there and takes no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ArtifactError, match=f"{tmp_path}/file: cannot be written .*make room on its disk"):
            storage.write_bytes(f"{tmp_path}/file", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_table_below_a_folder_that_looks_like_a_partition_keeps_its_columns(root: str) -> None:
    table = pa.table({"id": ["a", "b"]})
    storage.write_table(f"{root}/seed=1/part.parquet", table)
    assert storage.read_table(f"{root}/seed=1/part.parquet").equals(table)
    assert storage.read_table(f"{root}/seed=1/part.parquet", columns=["id"]).column_names == ["id"]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "garbage").write_bytes(b"\x00 neither")
    with pytest.raises(ArtifactError, match=f"{tmp_path}/none: cannot be read"):
        storage.read_bytes(f"{tmp_path}/none")
    with pytest.raises(ArtifactError, match=f"{tmp_path}/garbage: not valid JSON"):
        storage.read_json(f"{tmp_path}/garbage")
    for name in ("garbage", "none"):
        with pytest.raises(ArtifactError, match=f"{tmp_path}/{name}: cannot be read as Parquet"):
            storage.read_table(f"{tmp_path}/{name}")


def test_a_scheme_nobody_serves_is_refused_and_its_query_string_kept_quiet() -> None:
    with pytest.raises(ArtifactError, match=r"s4://bucket/a\.mp4: no filesystem for it") as caught:
        storage.filesystem(SIGNED)
    assert "secret" not in str(caught.value)


def test_a_question_mark_in_a_path_is_part_of_its_name() -> None:
    assert storage.shown("/videos/what?.mp4") == "/videos/what?.mp4"
    assert storage.shown("https://host/a.mp4?token=secret") == "https://host/a.mp4"


def test_files_are_listed_sorted_and_a_missing_folder_has_none(root: str) -> None:
    for name in ("b", "a", "sub/c"):
        storage.write_bytes(f"{root}/{name}", b"")
    assert [info.base_name for info in storage.list_files(root)] == ["a", "b"]
    assert [info.base_name for info in storage.list_files(root, recursive=True)] == ["a", "b", "c"]
    assert storage.list_files(f"{root}/missing") == []


def test_a_folder_comes_and_goes(root: str) -> None:
    assert not storage.exists(f"{root}/folder")
    storage.make_folder(f"{root}/folder/below")
    assert storage.exists(f"{root}/folder/below")
    storage.delete_folder(f"{root}/folder")
    storage.delete_folder(f"{root}/folder")
    assert not storage.exists(f"{root}/folder")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=f"{tmp_path}/file/below: cannot be written"):
        storage.make_folder(f"{tmp_path}/file/below")


def test_a_local_folder_and_a_local_video_are_used_where_they_lie(root: str, tmp_path: Path) -> None:
    storage.write_bytes(f"{root}/folder/video.mp4", b"v")
    with storage.local_folder(f"{root}/folder") as folder, storage.local_copy(f"{root}/folder/video.mp4") as video:
        assert (folder, video) == (tmp_path / "folder", tmp_path / "folder" / "video.mp4")
    assert storage.is_local(root)
    assert storage.local_path(f"{root}/folder") == tmp_path / "folder"


def test_a_remote_folder_and_a_remote_video_are_copied_for_as_long_as_they_are_used(remote: str) -> None:
    storage.write_bytes(f"{remote}/folder/a", b"content")
    with storage.local_folder(f"{remote}/folder") as folder:
        assert (folder / "a").read_bytes() == b"content"
    assert not folder.exists()
    with storage.local_copy(f"{remote}/folder/a") as video:
        assert video.read_bytes() == b"content"
    assert not video.exists()
    assert not storage.is_local(remote)


def test_a_remote_video_that_is_not_there_is_missing(remote: str) -> None:
    with pytest.raises(VideoMissingError, match=f"{remote}/none.mp4: cannot be fetched"), storage.local_copy(f"{remote}/none.mp4"):
        pass


def test_a_local_folder_is_uploaded_with_all_that_is_in_it(remote: str, tmp_path: Path) -> None:
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "sub" / "a").write_text("a")
    storage.upload_folder(tmp_path / "source", f"{remote}/target")
    assert storage.read_bytes(f"{remote}/target/sub/a") == b"a"


class Failing(pa.fs.FileSystemHandler):
    """A filesystem of one file that cannot be reached: each look at it fails, `num_failures` times with an error."""

    def __init__(self, error: OSError, num_failures: int) -> None:
        self.error, self.num_left, self.num_looks = error, num_failures, 0

    def open_input_stream(self, path: str) -> pa.NativeFile:
        self.num_looks += 1
        if self.num_left:
            self.num_left -= 1
            raise self.error
        return pa.PythonFile(io.BytesIO(b"content"), mode="r")

    def _none(self, *_: object) -> None:
        raise NotImplementedError

    copy_file = create_dir = delete_dir = delete_dir_contents = delete_file = delete_root_dir_contents = _none
    get_file_info = get_file_info_selector = move = open_append_stream = open_input_file = open_output_stream = _none

    def get_type_name(self) -> str:
        return "failing"

    def normalize_path(self, path: str) -> str:
        return path


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[OSError, int], Failing]:
    def make(error: OSError, num_failures: int) -> Failing:
        handler = Failing(error, num_failures)
        monkeypatch.setattr(storage, "filesystem", lambda _: (pa.fs.PyFileSystem(handler), "file"))
        return handler

    return make


def test_what_fails_now_and_then_is_tried_again(failing: Callable[[OSError, int], Failing]) -> None:
    handler = failing(OSError(errno.EIO, "Input/output error"), 2)
    assert storage.read_bytes("s3://bucket/file") == b"content" and handler.num_looks == 3


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENOSPC, errno.EROFS])
def test_what_cannot_pass_by_itself_is_said_at_once(failing: Callable[[OSError, int], Failing], number: int) -> None:
    handler = failing(OSError(number, os.strerror(number)), 9)
    with pytest.raises(ArtifactError, match="s3://bucket/file: cannot be read"):
        storage.read_bytes("s3://bucket/file")
    assert handler.num_looks == 1


def test_a_bucket_has_one_client_for_all_its_files() -> None:
    """With a region and an endpoint in the address nothing is asked of the network."""
    here = "region=eu-west-1&endpoint_override=127.0.0.1:1&scheme=http"
    one, path = storage.filesystem(f"s3://bucket/runs/a%20b/c.mp4?{here}")
    assert path == "bucket/runs/a b/c.mp4" == pa.fs.FileSystem.from_uri(f"s3://bucket/runs/a%20b/c.mp4?{here}")[1]
    assert storage.filesystem(f"s3://bucket/other/?{here}") == (one, "bucket/other") and storage.filesystem(f"s3://bucket?{here}")[0] is one
    assert storage.filesystem(f"s3://bucket/other?{here}")[0] is one
    assert storage.filesystem(f"s3://another/other?{here}")[0] is not one
    assert storage.filesystem(f"s3://key:secret@bucket/other?{here}")[0] is not one


def test_a_denial_by_s3_is_said_at_once(failing: Callable[[OSError, int], Failing]) -> None:
    handler = failing(OSError("When reading: AWS Error ACCESS_DENIED during GetObject operation: no"), 9)
    with pytest.raises(ArtifactError, match="ACCESS_DENIED"):
        storage.read_bytes("s3://bucket/file")
    assert handler.num_looks == 1


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder on a filesystem that is not local: pyarrow's own in memory."""
    memory = pa.fs._MockFileSystem()
    local = storage.filesystem

    def filesystem(uri: str) -> tuple[pa.fs.FileSystem, str]:
        return (memory, uri.removeprefix("mock://")) if uri.startswith("mock://") else local(uri)

    monkeypatch.setattr(storage, "filesystem", filesystem)
    memory.create_dir("bucket")
    return "mock://bucket"
