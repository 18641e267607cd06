"""MultiHateClip, English: YouTube shorts labelled normal, offensive or hateful, split by its authors.

Read: `train.tsv`, `valid.tsv`, `test.tsv` and, where asked for, `text.json` (title, description, transcript by id). Gold is the TSVs'
`Majority_Voting`; the labels in `text.json` are a chatbot's and are not read (readings, 19). Not covered: downloading.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from rbft.data.importers import label_of
from rbft.data.locations import VideosByName
from rbft.data.reading import HELD_OUT_FIRST, IN_TWO_SPLITS, LeftOut, Reading
from rbft.data.tables import Row, columns_of, read_rows, text_of
from rbft.errors import ManifestError
from rbft.records import Example
from rbft.task import Task

SPLIT_FILES = {"train": "train.tsv", "validation": "valid.tsv", "test": "test.tsv"}
TEXT_FILE = "text.json"


def read_multihateclip(folder: str | Path, task: Task, *, video_root: str | Path | None = None, with_text: bool = False) -> Reading:
    """The rows of the three TSVs in `folder` or its `annotation/`, each with its split; videos are found by id below `video_root`
    (default `folder`).

    An id in two splits (as published, one test video is in train as well) stays in the one held out more strictly. `with_text` makes
    title and transcript, whichever there are, the `context`. Raises `ManifestError` with the file and line.
    """
    folder = Path(folder)
    videos = VideosByName(folder if video_root is None else video_root)
    texts = _read_texts(folder / TEXT_FILE) if with_text else {}
    tables = next((each for each in (folder, folder / "annotation") if (each / SPLIT_FILES["train"]).is_file()), folder)
    rows_by_split = {split: _read_split(tables / name) for split, name in SPLIT_FILES.items()}
    split_by_id = {id: split for split in reversed(HELD_OUT_FIRST) for id in rows_by_split[split]}
    examples, left_out = [], []
    for split, rows in rows_by_split.items():
        for id, row in rows.items():
            label = label_of(row, "Majority_Voting", task)
            example = Example(id=id, uri=videos.locate(id), label=label, split=split, context=texts.get(id))
            if split_by_id[id] == split:
                examples.append(example)
            else:
                left_out.append(LeftOut(example, IN_TWO_SPLITS))
    num_with_text = sum(example.context is not None for example in examples)
    note = "Title and transcript are not part of the prompt (--with-text puts them there)."
    if with_text:
        note = f"Title and transcript go before the prompt of {num_with_text} of {len(examples)} videos; the others have neither."
    return Reading(tuple(examples), tuple(left_out), (note,))


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
        # Titles came from a web API, apostrophes as &#39;.
        if lines := [f"{name}: {html.unescape(text)}" for name, text in named.items() if text]:
            texts[id] = "\n".join(lines)
    return texts
