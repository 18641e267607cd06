"""Files on any pyarrow filesystem: a local or NFS path, `file://`, `s3://`, `gs://` (which goes the same way and is untested).

Everything a run leaves behind is written through here. Small files appear whole or not at all: locally by a rename, on an object store
because an upload only exists once it is finished. What fails now and then (a throttled store, a network disk) is tried again for about ten
seconds; what cannot pass by itself (no such file, no permission, no room) is said at once. Paths are joined with "/" and never normalised
further.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import tenacity
from pyarrow import fs

from rbft.errors import ArtifactError, VideoMissingError

_NUM_AT_A_TIME = 8
"""Files fetched from a store, or sent there, beside one another."""
_LASTING = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.EINVAL),
)
_LASTING_AT_AWS = (
    *("' not found", "ACCESS_DENIED", "NO_SUCH_BUCKET", "NO_SUCH_KEY"),
    *("INVALID_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH", "RESOURCE_NOT_FOUND"),
)
"""How Arrow's S3 filesystem names errors; they carry no errno."""


def _may_pass(error: BaseException) -> bool:
    if not isinstance(error, OSError) or isinstance(error, FileNotFoundError) or error.errno in _LASTING:
        return False
    return not any(name in str(error) for name in _LASTING_AT_AWS)


def _retried(num_attempts: int) -> Any:
    return tenacity.retry(
        retry=tenacity.retry_if_exception(_may_pass),
        wait=tenacity.wait_exponential_jitter(multiplier=0.25, max=4),
        stop=tenacity.stop_after_attempt(num_attempts),
        reraise=True,
    )


retried = _retried(6)


@contextlib.contextmanager
def _telling(uri: str, undone: str, advice: str = "") -> Iterator[None]:
    """What a disk or a store says, as an `ArtifactError` that names the place: it cannot be `undone`."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{shown(uri)}: cannot be {undone} ({error}){advice}") from None


def shown(uri: str) -> str:
    """`uri` as it may stand in a message: without the query string, which may be a signature."""
    return uri.partition("?")[0] if "://" in uri else uri


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem that holds `uri` and the path there; raises `ArtifactError` for a scheme nobody serves or a store out of reach."""
    if "://" not in uri:
        return fs.LocalFileSystem(), os.path.abspath(uri)
    try:
        parts = urlsplit(uri)
        if parts.scheme != "s3":
            return fs.FileSystem.from_uri(uri)
        bucket_fs, bucket = _s3(parts.netloc, parts.query, frozenset(item for item in os.environ.items() if item[0].startswith("AWS_")))
        return bucket_fs, f"{bucket}{unquote(parts.path)}".rstrip("/")
    except (ValueError, NotImplementedError) as error:
        reason = str(error).replace(uri, shown(uri))
        raise ArtifactError(f"{shown(uri)}: no filesystem for it ({reason}); use a path, file://, s3:// or gs://") from None
    except OSError as error:
        reason = str(error).replace(uri, shown(uri))
        raise ArtifactError(
            f"{shown(uri)}: its store cannot be reached ({reason}); see to its name, the network and the credentials"
        ) from None


@functools.lru_cache(maxsize=16)
def _s3(netloc: str, query: str, _settings: frozenset[tuple[str, str]]) -> tuple[fs.FileSystem, str]:
    """The client of one bucket, and the bucket's name. Each new one would ask for the bucket's region and for credentials, and connect.

    `_settings` are those of the environment, which a client reads once.
    """
    # The region of the bucket is asked for; where there is no network Arrow itself tries that for some seconds.
    return _retried(2)(fs.FileSystem.from_uri)(f"s3://{netloc}{f'?{query}' if query else ''}")


def is_local(uri: str) -> bool:
    return isinstance(filesystem(uri)[0], fs.LocalFileSystem)


def local_path(uri: str) -> Path:
    """The path of a local `uri`; raises `ArtifactError` if it is not local."""
    where, path = filesystem(uri)
    if not isinstance(where, fs.LocalFileSystem):
        raise ArtifactError(f"{shown(uri)}: must be on a local or shared disk for this step")
    return Path(path)


def exists(uri: str) -> bool:
    """Raises `ArtifactError` if that cannot be told."""
    where, path = filesystem(uri)
    with _telling(uri, "looked at"):
        return bool(_file_type(where, path) != fs.FileType.NotFound)


@retried
def _file_type(where: fs.FileSystem, path: str) -> Any:
    return where.get_file_info(path).type


def stamp(uri: str) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds of the file `uri`; raises `ArtifactError` if there is none that has them."""
    where, path = filesystem(uri)
    with _telling(uri, "looked at"):
        info = retried(where.get_file_info)(path)
    if info.type != fs.FileType.File or info.size is None or info.mtime_ns is None:
        raise ArtifactError(f"{shown(uri)}: no such file, or its storage knows no size and time of it")
    return int(info.size), int(info.mtime_ns)


def make_folder(uri: str) -> None:
    """Make `uri` and its parents; raises `ArtifactError` that says so when it cannot be written."""
    where, path = filesystem(uri)
    try:
        where.create_dir(path, recursive=True)
        if isinstance(where, fs.LocalFileSystem):
            with tempfile.TemporaryFile(dir=path):
                pass
    except OSError as error:
        raise ArtifactError(f"{shown(uri)}: cannot be written ({error}); give another output_dir or mend its permissions") from None


def list_files(uri: str, recursive: bool = False) -> list[fs.FileInfo]:
    """The files below the folder `uri`, sorted by path; empty if there is no such folder. Raises `ArtifactError` if that cannot be told."""
    where, path = filesystem(uri)
    with _telling(uri, "looked at"):
        found = retried(where.get_file_info)(fs.FileSelector(path, recursive=recursive, allow_not_found=True))
    return sorted((info for info in found if info.type == fs.FileType.File), key=lambda info: str(info.path))


def delete_file(uri: str) -> None:
    """Delete `uri`; harmless if it is not there. Raises `ArtifactError` if it cannot be deleted."""
    where, path = filesystem(uri)
    with _telling(uri, "deleted"):
        if _file_type(where, path) == fs.FileType.File:
            with contextlib.suppress(FileNotFoundError):
                retried(where.delete_file)(path)


def delete_folder(uri: str) -> None:
    """Delete `uri` and what is in it; harmless if it is not there. Raises `ArtifactError` if it cannot be deleted."""
    where, path = filesystem(uri)
    with _telling(uri, "deleted"):
        if _file_type(where, path) == fs.FileType.Directory:
            retried(where.delete_dir)(path)


def read_bytes(uri: str) -> bytes:
    """The bytes of `uri`; raises `ArtifactError` if there are none to read."""
    where, path = filesystem(uri)
    with _telling(uri, "read"):
        return _read(where, path)


@retried
def _read(where: fs.FileSystem, path: str) -> bytes:
    with where.open_input_stream(path, compression=None) as stream:
        return bytes(stream.read())


def write_bytes(uri: str, content: bytes) -> None:
    """Write `uri` whole or not at all, replacing what was there; raises `ArtifactError` if it cannot be written."""
    where, path = filesystem(uri)
    with _telling(uri, "written", "; mend its permissions or make room on its disk"):
        _write(where, path, content)


@retried
def _write(where: fs.FileSystem, path: str, content: bytes) -> None:
    is_local = isinstance(where, fs.LocalFileSystem)
    target = f"{path}.{uuid.uuid4().hex}.tmp" if is_local else path
    where.create_dir(os.path.dirname(path), recursive=True)
    try:
        with where.open_output_stream(target, compression=None) as stream:
            stream.write(content)
        if is_local:
            os.replace(target, path)
    finally:
        if is_local:
            Path(target).unlink(missing_ok=True)


def read_json(uri: str) -> Any:
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise ArtifactError(f"{shown(uri)}: not valid JSON ({error}); delete it and run again") from None


def last_json_line(uri: str) -> dict[str, Any] | None:
    """The last whole line of the file `uri`, each line of which is a JSON object; None if there is none. What stands after the last newline
    is a line being written."""
    if not exists(uri):
        return None
    whole = [line for line in read_bytes(uri).split(b"\n")[:-1] if line]
    return dict(json.loads(whole[-1])) if whole else None


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n").encode())


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """The Parquet file `uri`; raises `ArtifactError` if it is not one."""
    where, path = filesystem(uri)
    try:
        # `partitioning=None`: else a folder named `a=b` on the way to the file becomes a column.
        return retried(pq.read_table)(path, filesystem=where, columns=columns, partitioning=None)
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtifactError(f"{shown(uri)}: cannot be read as Parquet ({error})") from None


def read_row_groups(uri: str, columns: list[str], numbers: Sequence[int] | None = None) -> list[pa.Table]:
    """The row groups of the Parquet file `uri`, or those of the given `numbers`, a table each; `ArtifactError` if it is none."""
    where, path = filesystem(uri)
    try:
        return _read_row_groups(where, path, columns, numbers)
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtifactError(f"{shown(uri)}: cannot be read as Parquet ({error}); delete it and run again") from None


@retried
def _read_row_groups(where: fs.FileSystem, path: str, columns: list[str], numbers: Sequence[int] | None) -> list[pa.Table]:
    with pq.ParquetFile(path, filesystem=where) as file:
        chosen = range(file.num_row_groups) if numbers is None else numbers
        return [file.read_row_group(number, columns, use_threads=False) for number in chosen]


def write_table(uri: str, table: pa.Table) -> None:
    """Write `table` to the Parquet file `uri`, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes(uri, sink.getvalue().to_pybytes())


def upload_folder(source: Path, uri: str) -> None:
    """Copy the local folder (or file) `source` to `uri`; raises `ArtifactError` if that fails."""
    where, path = filesystem(uri)
    with _telling(uri, "written"):
        retried(fs.copy_files)(str(source), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=where)


def upload_files(source: Path, names: Iterable[str], uri: str) -> None:
    """Copy the files `names` below the local folder `source` to the same names below `uri`, several at a time."""
    _at_a_time(lambda name: upload_folder(source / name, f"{uri}/{name}"), names)


def download_files(uri: str, names: Iterable[str], target: Path) -> None:
    """Copy the files `names` below `uri` to the same names below the local `target`, several at a time; their folders are made.

    Raises `ArtifactError` if that fails.
    """
    where, folder = filesystem(uri)

    def download(name: str) -> None:
        to = target / name
        with _telling(f"{uri}/{name}", "fetched"):
            to.parent.mkdir(parents=True, exist_ok=True)
            retried(fs.copy_files)(f"{folder}/{name}", str(to), source_filesystem=where, destination_filesystem=fs.LocalFileSystem())

    _at_a_time(download, names)


def _at_a_time(action: Callable[[str], None], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(_NUM_AT_A_TIME) as threads:
        list(threads.map(action, names))


@contextlib.contextmanager
def local_folder(uri: str) -> Iterator[Path]:
    """The folder `uri` as a local one: itself where it is local, else a copy that lives as long as the context."""
    where, path = filesystem(uri)
    if isinstance(where, fs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="rbft-") as copy:
        retried(fs.copy_files)(path, copy, source_filesystem=where, destination_filesystem=fs.LocalFileSystem())
        yield Path(copy)


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """The video file `uri` as a local one: itself where it is local, else a copy that lives as long as the context.

    Raises `VideoMissingError` if a remote file cannot be fetched; a missing local file is found out by who opens it.
    """
    if "://" not in uri:
        yield Path(uri)
        return
    where, path = filesystem(uri)
    if isinstance(where, fs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="rbft-") as folder:
        copy = Path(folder) / "video"
        try:
            retried(fs.copy_files)(path, str(copy), source_filesystem=where, destination_filesystem=fs.LocalFileSystem())
        except OSError as error:
            raise VideoMissingError(f"{shown(uri)}: cannot be fetched ({error})") from None
        yield copy
