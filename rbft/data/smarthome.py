"""SmartHome (SmartHome-Bench): 1,203 clips of home cameras, normal or abnormal, with a person's description and reasoning.

Read: `Annotation_vad_1203.csv` or `Video_Annotation.csv` (the same rows; the label column is named differently), `Trim_video_label.csv` and
`Video_url.csv`, the last two where present. Facts about them: readings, 16-18 and "The two datasets". Not covered: downloading.
"""

from __future__ import annotations

import logging
from pathlib import Path

from rbft.data.importers import label_of
from rbft.data.locations import VideosByName
from rbft.data.tables import columns_of, read_rows
from rbft.errors import ManifestError
from rbft.records import Example
from rbft.task import Task

logger = logging.getLogger(__name__)

ANNOTATION_FILES = ("Annotation_vad_1203.csv", "Video_Annotation.csv")
TRIM_FILE = "Trim_video_label.csv"
URL_FILE = "Video_url.csv"
PRIVATE_URL = "privacy url"
_LABEL_COLUMNS = ("Label", "Anomaly Tag")
_TEXT_COLUMNS = ("Video Description", "Reasoning behind Normality/Anomalies")


def read_smarthome(folder: str | Path, task: Task, *, video_root: str | Path | None = None) -> list[Example]:
    """The examples of the annotation files in `folder`, in file order; videos are found by title below `video_root` (default `folder`).

    `human_text` is description and reasoning, a paragraph each. `end_s` is negative where the last seconds are dropped: seconds from the
    end, since the annotations do not know a clip's duration. A video whose URL is private is left out unless its file is there.
    Raises `ManifestError` with the file and line.
    """
    folder = Path(folder)
    videos = VideosByName(folder if video_root is None else video_root)
    annotations = _annotation_file(folder)
    columns = columns_of(annotations)
    label_column = next((column for column in _LABEL_COLUMNS if column in columns), None)
    missing = [column for column in ("Title", "Category", *_TEXT_COLUMNS) if column not in columns]
    if label_column is None or missing:
        lacking = missing or [" or ".join(_LABEL_COLUMNS)]
        raise ManifestError(f"{annotations}: lacks the column(s) {', '.join(lacking)}; take the file as published")
    trims, private = _read_trims(folder / TRIM_FILE), _read_private(folder / URL_FILE)
    examples, num_left_out = [], 0
    for row in read_rows(annotations):
        id = row.required("Title")
        start_s, end_s = trims.pop(id, (None, None))
        if id in private and id not in videos:
            num_left_out += 1
            continue
        human_text = "\n".join(text for text in map(row.text, _TEXT_COLUMNS) if text) or None
        label, category = label_of(row, label_column, task), row.text("Category")
        examples.append(
            Example(id=id, uri=videos.locate(id), label=label, start_s=start_s, end_s=end_s, human_text=human_text, category=category)
        )
    if trims:
        raise ManifestError(f"{folder / TRIM_FILE}: {next(iter(trims))!r} is not in {annotations.name}; take both from the same release")
    if num_left_out:
        logger.info("private videos without a file left out: path=%s kept=%d left_out=%d", annotations, len(examples), num_left_out)
    return examples


def _annotation_file(folder: Path) -> Path:
    for name in ANNOTATION_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ManifestError(f"{folder}: holds neither {' nor '.join(ANNOTATION_FILES)}; name the folder with the SmartHome annotation files")


def _read_trims(path: Path) -> dict[str, tuple[float | None, float | None]]:
    """Title -> (start_s, end_s). `Time` n > 0 drops the last n seconds, n < 0 the first -n, 0 keeps the whole (readings, 18)."""
    trims: dict[str, tuple[float | None, float | None]] = {}
    for row in read_rows(path) if path.is_file() else ():
        id, time_s = row.required("Title"), row.number("Time")
        if time_s is None:
            raise ManifestError(f"{row.where}: column 'Time' is empty; write 0 to keep the whole video")
        if id in trims:
            raise ManifestError(f"{row.where}: {id!r} has a trim already; keep one row a video")
        trims[id] = (-time_s if time_s < 0 else None, -time_s if time_s > 0 else None)
    return trims


def _read_private(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    return {row.required("Title") for row in read_rows(path) if row.text("URL") == PRIVATE_URL}
