"""SmartHome (SmartHome-Bench): 1,203 clips of home cameras, normal or abnormal, with a person's description and reasoning.

Read: `Annotation_vad_1203.csv` or `Video_Annotation.csv` (the same rows; the label column is named differently), `Trim_video_label.csv` and
`Video_url.csv`, the last two where present; all in one folder, or where the published repository has them. Facts about them: readings,
16-18 and "The two datasets". Not covered: downloading.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rbft.data.importers import label_of
from rbft.data.locations import VideosByName
from rbft.data.reading import PRIVATE, LeftOut, Reading
from rbft.data.tables import columns_of, read_rows
from rbft.errors import ManifestError
from rbft.records import Example
from rbft.task import Task

ANNOTATION_FILES = ("Annotation_vad_1203.csv", "Video_Annotation.csv")
TRIM_FILE = "Trim_video_label.csv"
FOLDERS, TRIM_FOLDERS = ("", "Videos"), ("", "Trim_Videos")
"""Where the published repository has them: below its root, and below the annotations."""
URL_FILE = "Video_url.csv"
PRIVATE_URL = "privacy url"
_LABEL_COLUMNS = ("Label", "Anomaly Tag")
_TEXT_COLUMNS = ("Video Description", "Reasoning behind Normality/Anomalies")


def read_smarthome(annotations: str | Path, task: Task, *, video_root: str | Path | None = None, with_trims: bool = True) -> Reading:
    """The rows of the annotation file `annotations`, or of the one in the folder `annotations`, in file order.

    Trims and URLs are read from beside it; without `with_trims`, the files are taken to be cut already. Videos are found by title below
    `video_root` (default: the annotations' folder). `human_text` is description and reasoning, a paragraph each. `end_s` is negative where
    the last seconds are dropped: seconds from the end, since the annotations do not know a clip's duration. A video whose URL is private
    is left out unless its file is there.
    Raises `ManifestError` with the file and line.
    """
    path = _annotation_file(Path(annotations))
    videos = VideosByName(path.parent if video_root is None else video_root)
    columns = columns_of(path)
    label_column = next((column for column in _LABEL_COLUMNS if column in columns), None)
    missing = [column for column in ("Title", "Category", *_TEXT_COLUMNS) if column not in columns]
    if label_column is None or missing:
        lacking = missing or [" or ".join(_LABEL_COLUMNS)]
        raise ManifestError(f"{path}: lacks the column(s) {', '.join(lacking)}; take the file as published")
    trim_file = next((file for folder in TRIM_FOLDERS if (file := path.parent / folder / TRIM_FILE).is_file()), None)
    trims = _read_trims(trim_file) if trim_file and with_trims else {}
    private = _read_private(path.parent / URL_FILE)
    examples, left_out, rewritten = [], [], Counter[tuple[str, str]]()
    for row in read_rows(path):
        id = row.required("Title")
        start_s, end_s = trims.get(id, (None, None))
        human_text = "\n".join(text for text in map(row.text, _TEXT_COLUMNS) if text) or None
        label, category = label_of(row, label_column, task), row.text("Category")
        example = Example(id=id, uri=videos.locate(id), label=label, start_s=start_s, end_s=end_s, human_text=human_text, category=category)
        if id in private and id not in videos:
            left_out.append(LeftOut(example, PRIVATE))
        else:
            examples.append(example)
        written = row.text(label_column)
        if label and written and written.lower() != label:
            rewritten[written, label] += 1
    read = {entry.id for entry in examples} | {entry.example.id for entry in left_out}
    if strangers := sorted(set(trims) - read):
        raise ManifestError(f"{trim_file}: {strangers[0]!r} is not in {path.name}; take both from the same release")
    notes = [f"Labelled {written!r}, counted as {label}: {count}." for (written, label), count in rewritten.items()]
    if with_trims:
        notes.append(_trim_note(trims) if trim_file else f"There is no {TRIM_FILE}: every video is used whole.")
    return Reading(tuple(examples), tuple(left_out), tuple(notes))


def _trim_note(trims: Mapping[str, tuple[float | None, float | None]]) -> str:
    num_starts, num_ends = (sum(trim[side] is not None for trim in trims.values()) for side in (0, 1))
    return (
        f"{TRIM_FILE}: {len(trims)} rows (last seconds dropped: {num_ends}, first seconds dropped: {num_starts}, "
        f"kept whole: {len(trims) - num_starts - num_ends}); videos without a row are used whole."
    )


def _annotation_file(path: Path) -> Path:
    if path.is_file():
        return path
    for folder in FOLDERS:
        for name in ANNOTATION_FILES:
            if (file := path / folder / name).is_file():
                return file
    raise ManifestError(f"{path}: holds neither {' nor '.join(ANNOTATION_FILES)}; name the folder with the SmartHome annotation files")


def _read_trims(path: Path) -> dict[str, tuple[float | None, float | None]]:
    """Title -> (start_s, end_s). `Time` n > 0 drops the last n seconds, n < 0 the first -n, 0 keeps the whole (readings, 18)."""
    trims: dict[str, tuple[float | None, float | None]] = {}
    for row in read_rows(path):
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
