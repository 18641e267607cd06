"""MultiHateClip, English: YouTube shorts labelled normal, offensive or hateful, split by its authors.

Read: `train.tsv`, `valid.tsv`, `test.tsv` and, where present, `text.json` (title, description, transcript by id). Gold is the TSVs'
`Majority_Voting`; the labels in `text.json` are a chatbot's and are not read (readings, 19). Not covered: downloading.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from rbft.data.importers import label_of
from rbft.data.locations import VideosByName
from rbft.data.tables import Row, columns_of, read_rows, text_of
from rbft.errors import ManifestError
from rbft.records import Example
from rbft.task import Task

logger = logging.getLogger(__name__)

SPLIT_FILES = {"train": "train.tsv", "validation": "valid.tsv", "test": "test.tsv"}
TEXT_FILE = "text.json"
_HELD_OUT_FIRST = ("test", "validation", "train")


def read_multihateclip(folder: str | Path, task: Task, *, video_root: str | Path | None = None) -> list[Example]:
    """The examples of the three TSVs in `folder`, each with its split; videos are found by id below `video_root` (default `folder`).

    `context` is title and transcript, whichever there are. An id in two splits (as published, one test video is in train as well) stays
    in the one held out more strictly, test before validation before train, so that nothing tested on was learned from; it is logged.
    Raises `ManifestError` with the file and line.
    """
    folder = Path(folder)
    videos = VideosByName(folder if video_root is None else video_root)
    texts = _read_texts(folder / TEXT_FILE)
    rows_by_split = {split: _read_split(folder / name) for split, name in SPLIT_FILES.items()}
    split_by_id: dict[str, str] = {}
    for split in _HELD_OUT_FIRST:
        for id in rows_by_split[split]:
            if split_by_id.setdefault(id, split) != split:
                logger.warning("id in two splits: id=%s kept_in=%s dropped_from=%s", id, split_by_id[id], split)
    examples = [
        Example(id=id, uri=videos.locate(id), label=label_of(row, "Majority_Voting", task), split=split, context=texts.get(id))
        for split, rows in rows_by_split.items()
        for id, row in rows.items()
        if split_by_id[id] == split
    ]
    num_without_text = sum(example.context is None for example in examples)
    if texts and num_without_text:
        logger.warning("videos without title and transcript: path=%s count=%d of=%d", folder / TEXT_FILE, num_without_text, len(examples))
    return examples


def _read_split(path: Path) -> dict[str, Row]:
    missing = [column for column in ("Video_ID", "Majority_Voting") if column not in columns_of(path)]
    if missing:
        raise ManifestError(f"{path}: lacks the column(s) {', '.join(missing)}; take the file as published")
    rows: dict[str, Row] = {}
    for row in read_rows(path):
        id = row.required("Video_ID")
        if id in rows:
            raise ManifestError(f"{row.where}: id {id!r} stands on line {rows[id].line} already; keep one row a video")
        rows[id] = row
    return rows


def _read_texts(path: Path) -> dict[str, str]:
    """Id -> title and transcript, without the ids that have neither. Fields may be absent, null, blank or NaN."""
    if not path.is_file():
        return {}
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise ManifestError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())}); take the file as published") from error
    if not isinstance(content, dict):
        raise ManifestError(f"{path}: is a {type(content).__name__}, not an object of videos by id; take the file as published")
    texts = {}
    for id, entry in content.items():
        fields = entry if isinstance(entry, dict) else {}
        named = {"Title": text_of(fields.get("title")), "Transcript": text_of(fields.get("transcript"))}
        if lines := [f"{name}: {text}" for name, text in named.items() if text]:
            texts[id] = "\n".join(lines)
    return texts
