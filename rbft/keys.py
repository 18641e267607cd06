"""Keys of the HTTP service: a file with a line for each, its name and the SHA-256 of the key, which itself is told once and kept nowhere.

    key = add_key("keys.txt", "front-desk")     # what `rbft keys add keys.txt front-desk` prints
    KeyRing("keys.txt").match(key)              # Key(name="front-desk", sha256=...)

A key is 256 random bits, so its plain hash cannot be searched for, and needs neither salt nor a slow function.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from rbft.errors import ConfigError

logger = logging.getLogger(__name__)

_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63}):([0-9a-f]{64})")
_HINT = "make one with `rbft keys add FILE NAME`"


@dataclass(frozen=True)
class Key:
    """What is kept of a key."""

    name: str
    sha256: str


def add_key(path: str | Path, name: str) -> str:
    """A new key, whose hash is added to the file `path` as `name`; the file is made if there is none, readable by its owner only.

    Raises `ConfigError` if there is a key of that name, or the file cannot be used.
    """
    keys = read_keys(path) if Path(path).exists() else ()
    if any(key.name == name for key in keys):
        raise ConfigError(f"{path}: has a key named {name} already; choose another name, or remove it with `rbft keys remove`")
    key = "rbft_" + secrets.token_urlsafe(32)
    added = Key(name, _digest(key))
    if not _LINE.fullmatch(_line(added)):
        raise ConfigError(f"{name!r} is no name for a key; take letters, digits, dots, dashes and underscores, up to 64 of them")
    _write(Path(path), (*keys, added))
    return key


def remove_key(path: str | Path, name: str) -> None:
    """Take the key `name` out of the file `path`; raises `ConfigError` if it has none of that name."""
    keys = read_keys(path)
    left = tuple(key for key in keys if key.name != name)
    if len(left) == len(keys):
        raise ConfigError(f"{path}: has no key named {name}; `rbft keys list {path}` tells those it has")
    _write(Path(path), left)


def read_keys(path: str | Path) -> tuple[Key, ...]:
    """The keys in the file `path`; raises `ConfigError` if it cannot be read or a line is none of ours."""
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"{path}: no keys can be read from it ({reason}); {_HINT}") from None
    keys = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:  # The line may be a key that someone pasted: it is not repeated.
            raise ConfigError(f"{path}, line {number}: is not `name:sha256 of the key`; {_HINT}")
        keys.append(Key(match[1], match[2]))
    return tuple(keys)


class KeyRing:
    """The keys in a file as they are now: it is read again when it has changed, so that a key can be added or taken back while others are
    in use. Raises `ConfigError` if the file cannot be read at the beginning; later such a file lets nobody in."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._stamp = self._look()  # Before it is read: what changes meanwhile is read again.
        self._keys = read_keys(path)

    def match(self, presented: str) -> Key | None:
        """The key that `presented` is, or None. The time it takes does not tell how much of a key was right, nor which one it was."""
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._keys = read_keys(self._path)
            except ConfigError as error:
                logger.error("keys cannot be read, nobody is let in: %s", error)
                self._keys = ()
        digest = _digest(presented)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _line(key: Key) -> str:
    return f"{key.name}:{key.sha256}"


def _write(path: Path, keys: tuple[Key, ...]) -> None:
    """Whole or not at all, and never readable by others, not even for a moment; a file that was there keeps its owner and its mode, as the
    service that reads it may run as another user."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write("".join(f"{_line(key)}\n" for key in keys))
            if path.exists():
                before = path.stat()
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
