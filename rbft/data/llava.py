"""LLaVA-style JSON: a list of records {"id", "video", "conversations": [{"from": "human" or "gpt", "value": …}, …]}, or one a line (JSONL).

An answer that names one of the task's labels is the video's label, any other answer is a person's text about it. Several records may be
about one video, as where the rationales of stage 1 and the labels of stage 2 lie in files of their own. What the human turns ask is not
read: the task has the prompts. Not covered: records about images, or about several videos.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from rbft.data.locations import VideosByName, resolve_uri
from rbft.data.tables import read_rows
from rbft.errors import ManifestError
from rbft.records import Example
from rbft.task import Task

_ANSWERS, _OTHERS = ("gpt", "assistant"), ("human", "user", "system")
_MAX_VERDICT_WORDS = 12
"""A longer text describes the video. "Nothing here that would be abnormal for a …" names a label, and does not give it."""
_VERDICT_LINE = re.compile(r"(?:[*_#> ]*[A-Za-z][A-Za-z ]{0,30}[*_ ]*:)?([^:]+)$")
"""The last line of a description that ends with its label: "**Classification:** Abnormal"."""
_SHAPE = '{"id": …, "video": …, "conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]}'


@dataclass(frozen=True)
class _Record:
    where: str
    """ "train.json record 7 (id 'v7')", to begin a message with."""
    example: Example


def read_llava(files: Sequence[tuple[str | None, str | Path]], task: Task, *, video_root: str | Path | None = None) -> list[Example]:
    """The videos that `files` (split, or None where the files carry none, and path) are about, in the order of their first record.

    A video is the path written below `video_root` (default: the folder of the first file), else the one file of that name anywhere below
    it. Raises `ManifestError` naming the record, also where two records contradict each other.
    """
    root = Path(files[0][1]).absolute().parent if video_root is None else video_root
    videos = VideosByName(root)
    found: dict[tuple[str | None, str], _Record] = {}
    for split, path in files:
        num_before = len(found)
        for where, content in _records(Path(path)):
            record = _read_record(where, content, split, task, videos)
            key = (split, record.example.id)
            found[key] = _merge(found[key], record) if key in found else record
        if len(found) == num_before == 0:
            raise ManifestError(f"{path}: has no records; write a list of {_SHAPE}")
    return [record.example for record in found.values()]


def read_answer(text: str, task: Task) -> tuple[str | None, str | None]:
    """The label that the answer `text` gives, and what of it is a description; None where there is none of these.

    A short answer gives a label by `Task.parse_label`, strictly and by whole words; a long one only in a last line of its own.
    """
    if (label := _as_label(text, task)) is not None:
        return label, None
    if len(text.split()) <= _MAX_VERDICT_WORDS:
        label = task.parse_label(text)
        return (label, None) if label else (None, text.strip() or None)
    *above, last = text.strip().splitlines()
    verdict = _VERDICT_LINE.fullmatch(last.strip())
    label = _as_label(verdict[1], task) if verdict and above else None
    return (label, "\n".join(above).strip()) if label else (None, text.strip())


def _as_label(text: str, task: Task) -> str | None:
    return task.normalise_label(text.strip(" \t\r\n*_`'\".!"))


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        yield from ((row.where, row.cells) for row in read_rows(path))
        return
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ManifestError(f"{path}: cannot be opened ({error.strerror}); check the path") from error
    except ValueError as error:
        raise ManifestError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())}); export it again") from error
    if not isinstance(content, list):
        raise ManifestError(f"{path}: is a {type(content).__name__}, not a list of records; write a list of {_SHAPE}")
    for number, record in enumerate(content, start=1):
        if not isinstance(record, dict):
            raise ManifestError(f"{path} record {number}: is a {type(record).__name__}, not an object; write {_SHAPE}")
        yield f"{path} record {number}", record


def _read_record(where: str, content: Mapping[str, Any], split: str | None, task: Task, videos: VideosByName) -> _Record:
    id, video = content.get("id"), content.get("video")
    if isinstance(video, list) and len(video) == 1:
        video = video[0]
    if id is not None and not isinstance(id, (str, int)):
        raise ManifestError(f"{where}: id is a {type(id).__name__}; write text")
    id = str(id).strip() if id is not None else None
    where = f"{where} (id {id!r})" if id else where
    if not isinstance(video, str) or not video.strip():
        raise ManifestError(f"{where}: has no video (it has {', '.join(content) or 'nothing'}); give one path as `video`, or take it out")
    labels: dict[str, None] = {}
    texts = []
    for answer in _answers(where, content.get("conversations")):
        label, text = read_answer(answer, task)
        labels |= {label: None} if label else {}
        texts += [text] if text else []
    label = _only_label(where, labels)
    uri = _locate(video.strip(), videos)
    return _Record(where, Example(id=id or video.strip(), uri=uri, label=label, split=split, human_text="\n".join(texts) or None))


def _answers(where: str, conversations: Any) -> Iterator[str]:
    if not isinstance(conversations, list) or not conversations:
        raise ManifestError(f"{where}: has no conversations; write {_SHAPE}")
    for number, turn in enumerate(conversations, start=1):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if speaker not in (*_ANSWERS, *_OTHERS) or not isinstance(turn.get("value"), str):
            raise ManifestError(f'{where}: turn {number} is not {{"from": "human" or "gpt", "value": text}}; correct it')
        if speaker in _ANSWERS:
            yield turn["value"]


def _only_label(where: str, labels: Mapping[str, None]) -> str | None:
    if len(labels) > 1:
        raise ManifestError(f"{where}: its answers give several labels ({', '.join(labels)}); leave one")
    return next(iter(labels), None)


def _locate(video: str, videos: VideosByName) -> str:
    written = resolve_uri(video, videos.root)
    if written in videos.locations:
        return written
    # Paths in such files are often those of another machine.
    name = PurePosixPath(video).stem
    return videos.locate(name) if name in videos else written


def _merge(first: _Record, second: _Record) -> _Record:
    one, other = first.example, second.example
    if one.uri != other.uri:
        raise ManifestError(f"{second.where}: is about another video than {first.where}; give every video an id of its own")
    if one.label and other.label and one.label != other.label:
        raise ManifestError(f"{second.where}: says {other.label!r}, {first.where} says {one.label!r}; leave one")
    texts = dict.fromkeys(text for text in (one.human_text, other.human_text) if text)
    return replace(first, example=replace(one, label=one.label or other.label, human_text="\n".join(texts) or None))
