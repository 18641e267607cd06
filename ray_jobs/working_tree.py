"""What `rbft submit` sends to a cluster: the files of the working tree that are work, packed into one archive.

In a git checkout those are the tracked files and the new ones that no .gitignore names; elsewhere, all that are not below a folder of
`JUNK`. Videos and large files stay here: they belong on storage that every node sees. So does whatever may be a secret (`SECRETS`).
"""

from __future__ import annotations

import os
import subprocess
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from rbft.errors import JobError

MIB = 2**20
MAX_FILE_BYTES = 32 * MIB
"""A larger file is left out, and named."""
MAX_BYTES = 200 * MIB
"""Of all files together. Ray takes 500 MiB, but keeps it in the head's memory and sends it to every node."""
JUNK = (".git", ".venv", "venv", "runs", "build", "dist", "node_modules", "__pycache__", "*_cache", ".hypothesis", "*.egg-info")
"""Folders that are nobody's work. .gitignore, .dockerignore and cluster.yaml name them too, and `SECRETS`."""
SECRETS = (".env*", "*.pem", "*.key", "keys*.txt", "auth_token", ".ray-token-*")
"""Names of files, or of folders of such, that are sent nowhere, even if git tracks them."""
VIDEOS = frozenset({".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".3gp"})
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every file in the archive: the same files make the same archive, which Ray then need not be sent again."""


@dataclass(frozen=True)
class WorkingTree:
    """The files of `root` that are sent, and those that are not for what they are."""

    root: Path
    files: tuple[str, ...]
    """Relative to `root`, sorted."""
    num_bytes: int
    left_out: tuple[str, ...]
    """Videos and large files, which a job may miss."""
    secrets: tuple[str, ...] = ()
    """Files that may be secret."""

    def describe(self) -> str:
        """What is sent, for a person, on one to three lines."""
        lines = [f"{self.root}: {len(self.files)} files, {self.num_bytes / MIB:.1f} MiB"]
        for names, what in (
            (self.left_out, f"videos or files over {MAX_FILE_BYTES // MIB} MiB"),
            (self.secrets, "files that may be secret, by their names"),
        ):
            if names:
                lines.append(f"left out: {len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})")
        return "\n".join(lines)


def read_working_tree(root: Path) -> WorkingTree:
    """What of the folder `root` is sent; raises `JobError` if that is too much."""
    root = root.resolve()
    files, left_out, secrets, num_bytes = [], [], [], 0
    for name in _from_git(root) or _walk(root):
        path = root / name
        if not path.is_file():  # deleted, or a link to a folder
            continue
        if any(_is_one_of(part, SECRETS) for part in Path(name).parts):
            secrets.append(name)
            continue
        size = path.stat().st_size
        if size > MAX_FILE_BYTES or path.suffix.lower() in VIDEOS:
            left_out.append(name)
            continue
        files.append(name)
        num_bytes += size
        if num_bytes > MAX_BYTES:
            raise JobError(
                f"{root}: more than {MAX_BYTES // MIB} MiB would be sent, most of it in {_largest_folder(root, files)}; name in .gitignore "
                "what is not code, or run this in the folder that is"
            )
    return WorkingTree(root, tuple(sorted(files)), num_bytes, tuple(sorted(left_out)), tuple(sorted(secrets)))


def pack(tree: WorkingTree, more: Mapping[str, str], archive: Path) -> None:
    """Write the zip `archive` of the files of `tree` and of `more`, a mapping of names to contents."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in tree.files:
            path = tree.root / name
            packed.writestr(_entry(name, path.stat().st_mode & 0o777), path.read_bytes())
        for name, content in more.items():
            packed.writestr(_entry(name, 0o644), content)


def _entry(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = mode << 16
    return entry


def _from_git(root: Path) -> list[str] | None:
    """None where `root` is in no checkout. Raises `JobError` if it is in one that git does not tell of: it alone knows what is not to be
    sent."""
    if not any((folder / ".git").exists() for folder in (root.resolve(), *root.resolve().parents)):
        return None
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout
    except OSError as error:
        raise JobError(f"{root}: is a git checkout, and git cannot be run ({error}); install it") from None
    except subprocess.CalledProcessError as error:
        raise JobError(f"{root}: git does not list its files: {error.stderr.decode(errors='replace').strip()}") from None
    return sorted({os.fsdecode(name) for name in listed.split(b"\0") if name})


def _walk(root: Path) -> Iterator[str]:
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not _is_one_of(name, JUNK))
        for name in sorted(names):
            yield os.path.relpath(os.path.join(folder, name), root)


def _is_one_of(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _largest_folder(root: Path, files: Iterable[str]) -> str:
    """The first part of the paths below which most bytes lie."""
    sizes: dict[str, int] = {}
    for name in files:
        top = name.partition("/")[0]
        sizes[top] = sizes.get(top, 0) + (root / name).stat().st_size
    return max(sizes, key=lambda top: sizes[top])
