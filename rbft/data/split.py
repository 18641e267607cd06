"""Who is learned from and who is tested on: stratified seeded splits, published splits, and the check that no video is in two.

A video's place in its class's order is a hash of (seed, id), so a split depends on neither the order nor the other videos' names, and
adding videos moves only the few at the borders.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from rbft import storage
from rbft.data.locations import VIDEO_EXTENSIONS, resolve_uri
from rbft.data.manifest import SPLIT_ALIASES, unknown_split
from rbft.errors import ArtifactError, ConfigError, DataError, LeakError
from rbft.records import SPLITS, Example

logger = logging.getLogger(__name__)

_PRIORITY = ("train", "test", "validation")
"""Who gets the videos of a class that has fewer of them than there are splits."""
_CHUNK_BYTES = 1 << 20


def split_examples(examples: Sequence[Example], fractions: Mapping[str, float], seed: int) -> list[Example]:
    """`examples`, in their order, each with a split: per label, `fractions` by largest remainder (readings, 17).

    Every split gets at least one video of a class that has enough. Unlabelled videos go to train: there is no answer to test them against.
    Raises `ConfigError` for fractions that do not sum to 1, `DataError` for a class with one video.
    """
    names = _checked_fractions(fractions)
    split_by_id: dict[str, str] = {}
    for label in sorted({example.label for example in examples if example.label is not None}):
        ids = sorted({example.id for example in examples if example.label == label}, key=lambda id: _place(seed, id))
        if len(ids) == 1 and len(names) > 1:
            raise DataError(
                f"class {label!r} has one video ({ids[0]!r}) and cannot be split; "
                "add videos of it, map it onto another label with label_aliases, or give a split_file"
            )
        begin = 0
        for name, count in _sizes(len(ids), {name: fractions[name] for name in names}).items():
            split_by_id.update(dict.fromkeys(ids[begin : begin + count], name))
            begin += count
    return [replace(example, split="train" if example.label is None else split_by_id[example.id]) for example in examples]


def read_split_file(path: str | Path) -> dict[str, str]:
    """Id -> split, from JSON `{"train": [ids], "test": [ids]}`, or text with `id,split` (or `id split`) a line, header optional.

    Raises `DataError` with the line for what cannot be read, `LeakError` for an id in two splits.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}); check split_file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    pairs = _json_pairs(path, text) if path.suffix.lower() == ".json" else _text_pairs(path, text)
    split_by_id: dict[str, str] = {}
    for where, id, value in pairs:
        split = SPLIT_ALIASES.get(value.lower(), value.lower())
        if split not in SPLITS:
            raise DataError(f"{where}: {unknown_split(value)}")
        if split_by_id.setdefault(id, split) != split:
            raise LeakError(f"{where}: id {id!r} is in {split_by_id[id]} and in {split}; leave it in one of them")
    if not split_by_id:
        raise DataError(f'{path}: names no id; write JSON {{"train": [ids], "test": [ids]}} or a line `id,split` a video')
    return split_by_id


def apply_split_file(examples: Sequence[Example], path: str | Path, *, also_known: Collection[str] = ()) -> list[Example]:
    """The examples that the split file at `path` names, each with its split; the others are left out, and their number is logged.

    An id may be written with a video's extension. Raises `DataError` if the file names an id that is neither among `examples` nor
    `also_known` (left out for a reason that was told), since a test set would shrink unseen.
    """
    known = {example.id for example in examples} | set(also_known)
    split_by_id: dict[str, str] = {}
    unknown = []
    for written, split in read_split_file(path).items():
        name = PurePosixPath(written)
        id = name.stem if written not in known and name.suffix.lower() in VIDEO_EXTENSIONS else written
        if id not in known:
            unknown.append(written)
        elif split_by_id.setdefault(id, split) != split:
            raise LeakError(f"{path}: id {id!r} is in {split_by_id[id]} and in {split}; leave it in one of them")
    if unknown:
        named = ", ".join(map(repr, unknown[:5]))
        raise DataError(f"{path}: {len(unknown)} id(s) are not in the data ({named}); import those videos or take them out of the file")
    kept = [replace(example, split=split_by_id[example.id]) for example in examples if example.id in split_by_id]
    if len(kept) < len(examples):
        logger.warning("videos left out by the split file: path=%s kept=%d left_out=%d", path, len(kept), len(examples) - len(kept))
    return kept


@dataclass(frozen=True)
class Leak:
    """One video that is in several splits."""

    kind: str
    """"id", "uri" or "bytes": what is the same."""
    ids: tuple[str, ...]
    splits: tuple[str, ...]

    def __str__(self) -> str:
        named = ", ".join(map(repr, self.ids[:5])) + (f" and {len(self.ids) - 5} more" if len(self.ids) > 5 else "")
        return f"{named}: the same {self.kind} in {' and '.join(self.splits)}; leave the video in one split"


def find_leaks(examples: Iterable[Example]) -> list[Leak]:
    """The videos in more than one split: same id, else same URI, else same bytes (where `sha256` is known)."""
    groups: dict[tuple[str, str], list[Example]] = {}
    for example in examples:
        if example.split is not None:
            for kind, value in (("id", example.id), ("uri", example.uri), ("bytes", example.sha256)):
                if value is not None:
                    groups.setdefault((kind, value), []).append(example)
    leaks: dict[tuple[tuple[str, ...], tuple[str, ...]], Leak] = {}
    for kind in ("id", "uri", "bytes"):
        for (group_kind, _), members in groups.items():
            splits = tuple(split for split in SPLITS if split in {member.split for member in members})
            if group_kind == kind and len(splits) > 1:
                ids = tuple(dict.fromkeys(member.id for member in members))
                leaks.setdefault((ids, splits), Leak(kind, ids, splits))
    return list(leaks.values())


def check_leaks(examples: Iterable[Example]) -> None:
    """Raise `LeakError` with the first of `find_leaks` and the number of the others; return nothing if there is none."""
    leaks = find_leaks(examples)
    if leaks:
        raise LeakError(str(leaks[0]) + (f" (and {len(leaks) - 1} more; `rbft validate` lists them)" if len(leaks) > 1 else ""))


def hash_videos(examples: Sequence[Example], base: str | Path, *, num_threads: int = 8) -> list[Example]:
    """`examples` with the SHA-256 of their files' bytes; URIs are relative to `base`.

    A hash that is there already is kept. A file that cannot be read keeps None and is logged. Files are streamed, each is read once.
    """
    locations = {resolve_uri(example.uri, base) for example in examples if example.sha256 is None}
    with ThreadPoolExecutor(num_threads) as pool:
        hashes = dict(zip(sorted(locations), pool.map(_sha256, sorted(locations)), strict=True))
    hashed = [replace(example, sha256=example.sha256 or hashes[resolve_uri(example.uri, base)]) for example in examples]
    unread = [example.id for example in hashed if example.sha256 is None]
    if unread:
        logger.warning("videos that cannot be read have no sha256: count=%d first_ids=%s", len(unread), unread[:5])
    return hashed


def _sha256(location: str) -> str | None:
    digest = hashlib.sha256()
    try:
        where, path = storage.filesystem(location)
        with where.open_input_stream(path, compression=None) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except (OSError, ArtifactError):
        return None
    return digest.hexdigest()


def _place(seed: int, id: str) -> bytes:
    return hashlib.sha256(f"split/{seed}/{id}".encode()).digest()


def _checked_fractions(fractions: Mapping[str, float]) -> list[str]:
    """The splits with a share, in the order of `SPLITS`."""
    unknown = [name for name in fractions if name not in SPLITS]
    if unknown:
        raise ConfigError(f"fractions: {unknown_split(unknown[0])}")
    if any(not fraction >= 0 for fraction in fractions.values()) or not math.isclose(sum(fractions.values()), 1.0, abs_tol=1e-6):
        raise ConfigError(f"fractions: {dict(fractions)} must be 0 or more and sum to 1; e.g. train 0.8, test 0.2")
    return [name for name in SPLITS if fractions.get(name, 0) > 0]


def _sizes(num_videos: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """How many of `num_videos` each split gets: largest remainder, then one for each split that has none, as far as they go."""
    total = sum(fractions.values())
    exact = {name: fraction / total * num_videos for name, fraction in fractions.items()}
    # The guard keeps 0.6 * 5 = 3.0000000000000004 and 0.57 * 100 = 56.99999999999999 whole.
    sizes = {name: math.floor(share + 1e-9) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (-round(exact[name] - sizes[name], 9), SPLITS.index(name)))
    for name in by_remainder[: num_videos - sum(sizes.values())]:
        sizes[name] += 1
    for name in [name for name in _PRIORITY if name in sizes][:num_videos]:
        if sizes[name] == 0:
            richest = max(sizes, key=lambda other: (sizes[other], _PRIORITY.index(other)))
            if sizes[richest] > 1 or _PRIORITY.index(richest) > _PRIORITY.index(name):
                sizes[richest] -= 1
                sizes[name] = 1
    return sizes


def _json_pairs(path: Path, text: str) -> list[tuple[str, str, str]]:
    try:
        content: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno}: is not JSON ({error.msg})") from error
    if not isinstance(content, dict) or not all(isinstance(ids, list) for ids in content.values()):
        raise DataError(f'{path}: must be an object of lists, {{"train": [ids], "test": [ids]}}')
    return [(f"{path}: {split!r}", str(id).strip(), split.strip()) for split, ids in content.items() for id in ids]


def _text_pairs(path: Path, text: str) -> list[tuple[str, str, str]]:
    pairs = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        separator = next((character for character in "\t," if character in line), None)
        cells = next(csv.reader([line], delimiter=separator)) if separator else line.rsplit(None, 1)
        cells = [cell.strip() for cell in cells]
        if len(cells) != 2 or not all(cells):
            raise DataError(f"{path} line {number}: must be `id,split`, got {line.strip()!r}")
        if number == 1 and cells[1].lower() in ("split", "subset", "partition"):
            continue
        pairs.append((f"{path} line {number}", cells[0], cells[1]))
    return pairs
