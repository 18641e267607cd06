"""Where a video is: URIs resolved against a base, the video files below a folder.

A location is an absolute local path or a URI of any pyarrow filesystem (s3://, gs://, hdfs://).
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from pyarrow import fs

from rbft import storage
from rbft.errors import DataError

VIDEO_EXTENSIONS = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".flv", ".wmv", ".ogv", ".3gp")
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_IN_URI = re.compile("[%?#]")
"""What means something else in a URI than in a path."""


def resolve_uri(uri: str, base: str | Path) -> str:
    """The absolute location of `uri`, which may be relative to the folder or URI `base` (for a manifest: the folder it lies in).

    Local results are absolute, so that a worker in another working directory finds the same file and a name that begins with "-" is
    never taken for an option.
    """
    uri, base = _local_path(uri), _local_path(str(base))
    if _SCHEME.match(uri):
        return uri
    if _SCHEME.match(base) and not os.path.isabs(uri):
        return f"{base.rstrip('/')}/{_IN_URI.sub(lambda found: quote(found[0]), uri)}"
    return os.path.abspath(os.path.join(base, uri))


def _local_path(location: str) -> str:
    return unquote(urlsplit(location).path) if location.startswith("file://") else location


def list_videos(root: str | Path) -> dict[str, str]:
    """Path relative to `root` -> location, for every file below `root` with a video's extension, sorted by path.

    Raises `DataError` if `root` is not a folder.
    """
    where, path = storage.filesystem(str(root))
    if where.get_file_info(path).type != fs.FileType.Directory:
        raise DataError(f"{root}: no such folder; name the folder that holds the videos")
    found = {}
    for info in storage.list_files(str(root), recursive=True):
        relative = info.path[len(path) :].lstrip("/")
        # "._clip.mp4" is what macOS leaves beside clip.mp4 on foreign disks; it is no video.
        is_video = f".{info.extension.lower()}" in VIDEO_EXTENSIONS and not info.base_name.startswith("._")
        if is_video:
            found[relative] = resolve_uri(relative, root)
    return dict(sorted(found.items()))


class VideosByName:
    """Finds the video of an id below a folder: the file whose name without extension is the id, else the one in a folder of that name."""

    def __init__(self, root: str | Path) -> None:
        self.root = root
        found = list_videos(root)
        self.locations = frozenset(found.values())
        by_stem: dict[str, list[str]] = {}
        by_folder: dict[str, list[str]] = {}
        for relative, location in found.items():
            path = PurePosixPath(relative)
            by_stem.setdefault(path.stem, []).append(location)
            by_folder.setdefault(path.parent.name, []).append(location)
        alone = {name: locations for name, locations in by_folder.items() if name and len(locations) == 1}
        self._by_name = alone | by_stem

    def __contains__(self, id: str) -> bool:
        return id in self._by_name

    def locate(self, id: str) -> str:
        """The location of the video of `id`; where there is none, the place where it is expected, so that it is reported as missing.

        Raises `DataError` if several files have that name.
        """
        found = self._by_name.get(id, [])
        if len(found) > 1:
            raise DataError(f"{self.root}: several videos are called {id!r} ({', '.join(found[:3])}); keep one of them")
        return found[0] if found else resolve_uri(f"{id}.mp4", self.root)
