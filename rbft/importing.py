"""`rbft import`: from annotation files to a manifest of the videos that are there, and a data card that says what is not.

    rbft import --config RUN.yaml --out manifest.parquet                          the data of a run
    rbft import smarthome FOLDER --videos FOLDER --out manifest.parquet           SmartHome-Bench as published
    rbft import multihateclip FOLDER --videos FOLDER --out manifest.parquet       MultiHateClip as published
    rbft import llava FILE … --task FILE --videos FOLDER --out manifest.parquet   LLaVA-style JSON

A video without a file is left out, counted and listed; its split is drawn all the same, so that fetching it later moves no other video. One
whose URL is private is not of the published set without its file: with it, it is drawn too, and moves a few others.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbft import storage
from rbft.config import DataConfig, RunConfig, load_task
from rbft.config.data import DEFAULT_FRACTIONS
from rbft.errors import ConfigError
from rbft.records import SPLITS, Example, VideoSpec
from rbft.task import Task

if TYPE_CHECKING:
    from rbft.data.card import DataCard
    from rbft.data.reading import Reading


@dataclass(frozen=True)
class Imported:
    """What an import came to. `str()` of it is the text to print."""

    card: DataCard
    out: str
    then: str
    """What comes next, where there is a manifest."""

    @property
    def exit_code(self) -> int:
        """1 where there is no file of any video, and so no manifest."""
        return 0 if self.card.manifest else 1

    def __str__(self) -> str:
        from rbft.data.card_text import card_summary

        markdown, _ = card_paths(self.out)
        if self.card.manifest is None:
            return f"{card_summary(self.card)}\nno manifest was written, as no video has a file; {markdown} lists what is missing"
        written = f"wrote {self.card.num_videos.imported} videos to {self.out}, and what they are to {markdown}"
        return f"{card_summary(self.card)}\n{written}\n{self.then}"


TASKS = Path(__file__).resolve().parent.parent / "configs" / "tasks"


def add_formats(parser: argparse.ArgumentParser) -> None:
    """Add the formats that `rbft import` takes without a run file, each of which sets `read_format`."""
    formats = parser.add_subparsers(title="formats, without a run file", metavar="FORMAT")
    smarthome = _add_format(formats, "smarthome", "SmartHome-Bench as published", import_smarthome)
    smarthome.add_argument("annotations", help="the published repository, its Videos folder or the annotation file")
    smarthome.add_argument("--no-trims", action="store_true", help="the videos are cut already, e.g. by the dataset's own script")
    multihateclip = _add_format(formats, "multihateclip", "MultiHateClip as published", import_multihateclip)
    multihateclip.add_argument("annotations", help="English_data of the published repository, or a folder with the three TSV files")
    multihateclip.add_argument("--with-text", action="store_true", help="put title and transcript (text.json) before the prompt")
    llava = _add_format(formats, "llava", "LLaVA-style JSON: id, video, conversations", import_llava)
    llava.add_argument("files", nargs="+", metavar="[SPLIT=]FILE", help="JSON or JSONL; of a split, e.g. train=a.json test=b.json")


def _add_format(formats: Any, name: str, subject: str, read_format: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = formats.add_parser(name, help=subject, description=f"Import {subject}: a manifest and a data card.")
    default = TASKS / f"{name}.yaml"
    has_task = default.is_file()
    said = f"default: {default.relative_to(TASKS.parent.parent)}" if has_task else "labels and prompts"
    parser.add_argument("--task", required=not has_task, default=str(default), metavar="FILE", help=f"the task file ({said})")
    parser.add_argument("--videos", metavar="FOLDER", help="where the videos are, at any depth (default: beside the annotations)")
    parser.add_argument("--out", required=True, metavar="FILE", help="the manifest.parquet to write; the data card goes beside it")
    parser.add_argument("--split-file", metavar="FILE", help="a published split: ids by split (JSON), or a line `id,split` a video")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the 80/20 split, where none is published (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="read and open no video: no hashes, no lengths")
    parser.set_defaults(read_format=read_format)
    return parser


def import_run(config: RunConfig, out: str) -> Imported:
    """Import the data of a run."""
    from rbft.data.source import read_source

    reading = read_source(config.data, config.task, config.seed)
    sources = ("manifest", "annotations", "folder", "smarthome", "multihateclip")
    annotations = next(str(value) for name in sources if (value := getattr(config.data, name)))
    card = import_reading(
        reading,
        config.task,
        out,
        name=config.name,
        annotations=[annotations],
        spec=config.video.spec(),
        require_labels=not config.evaluation.takes_unlabelled,
        resolve_leaks=bool(config.data.smarthome or config.data.multihateclip),
    )
    return Imported(card, out, "a run reads it as data.manifest, in place of the source it was made from")


def import_smarthome(arguments: argparse.Namespace) -> Imported:
    from rbft.data.smarthome import read_smarthome

    task = load_task(arguments.task)
    folder = Path(arguments.annotations)
    videos = arguments.videos or str(folder.parent if folder.is_file() else folder)
    reading = read_smarthome(folder, task, video_root=videos, with_trims=not arguments.no_trims)
    return _import_format(arguments, "smarthome", reading, task, videos)


def import_multihateclip(arguments: argparse.Namespace) -> Imported:
    from rbft.data.multihateclip import read_multihateclip

    task = load_task(arguments.task)
    videos = arguments.videos or arguments.annotations
    reading = read_multihateclip(arguments.annotations, task, video_root=videos, with_text=arguments.with_text)
    return _import_format(arguments, "multihateclip", reading, task, videos)


def import_llava(arguments: argparse.Namespace) -> Imported:
    from rbft.data.llava import read_llava
    from rbft.data.reading import Reading

    task = load_task(arguments.task)
    files = [_split_and_file(text) for text in arguments.files]
    if len({split is None for split, _ in files}) > 1:
        raise ConfigError("some files are given with their split and others without; write SPLIT=FILE for all of them or for none")
    videos = arguments.videos or str(Path(files[0][1]).absolute().parent)
    arguments.annotations = [path for _, path in files]
    reading = Reading(tuple(read_llava(files, task, video_root=videos)))
    return _import_format(arguments, "llava", reading, task, videos)


def _import_format(arguments: argparse.Namespace, name: str, reading: Reading, task: Task, videos: str) -> Imported:
    from rbft.data.locations import list_videos
    from rbft.data.source import with_splits

    named = {example.uri for example in (*reading.examples, *(left.example for left in reading.left_out))}
    annotations = arguments.annotations
    card = import_reading(
        with_splits(reading, arguments.split_file, DEFAULT_FRACTIONS, arguments.seed),
        task,
        arguments.out,
        name=name,
        annotations=[annotations] if isinstance(annotations, str) else annotations,
        video_root=videos,
        unnamed_files=[relative for relative, location in list_videos(videos).items() if location not in named],
        quick=arguments.quick,
        resolve_leaks=name in DataConfig.model_fields,
    )
    recipe = f"configs/{name}-qwen2.5-vl-7b.yaml"
    if not (TASKS.parent / Path(recipe).name).is_file():
        return Imported(card, arguments.out, "a run reads it as data.manifest")
    return Imported(card, arguments.out, f"next: rbft plan --config {recipe} --set data.{name}=null --set data.manifest={arguments.out}")


def import_reading(
    reading: Reading,
    task: Task,
    out: str,
    *,
    name: str,
    annotations: Sequence[str],
    video_root: str | None = None,
    unnamed_files: Sequence[str] = (),
    spec: VideoSpec | None = None,
    quick: bool = False,
    require_labels: bool = True,
    resolve_leaks: bool = False,
) -> DataCard:
    """Write the manifest of the videos of `reading` that are there to `out`, and the data card beside it; the card comes back.

    Without a single file there is a card and no manifest. `quick` neither hashes nor opens videos. A video whose bytes are in two splits
    is refused, or, with `resolve_leaks`, stays in the one held out more strictly: who imports a published split cannot mend it.
    Raises `DataError` or one of its kinds for what makes the data unusable; the card is written even then.
    """
    from rbft.data.card import make_card
    from rbft.data.manifest import validate_examples, write_manifest
    from rbft.data.reading import IN_TWO_SPLITS, MISSING
    from rbft.data.split import check_leaks, hash_videos
    from rbft.data.survey import survey_videos
    from rbft.data.validate import missing_videos

    reading = reading.leaving_out(dict.fromkeys(missing_videos(reading.examples), MISSING))
    if not quick:
        reading = replace(reading, examples=tuple(hash_videos(reading.examples, ".")))
    if resolve_leaks:
        reading = reading.leaving_out(dict.fromkeys(_less_held_out(reading.examples), IN_TWO_SPLITS))
    survey = None if quick else survey_videos(reading.examples, spec)
    card = make_card(
        reading,
        task,
        name=name,
        annotations=annotations,
        video_root=video_root,
        survey=survey,
        spec=spec,
        unnamed_files=unnamed_files,
    )
    try:
        if reading.examples:
            validate_examples(reading.examples, task, require_labels=require_labels)
            check_leaks(reading.examples)
            write_manifest(reading.examples, out)
            card = replace(card, manifest=str(out))
    finally:
        _write_card(card, out)
    return card


def card_paths(out: str) -> tuple[str, str]:
    """Where the card of the manifest at `out` lies, as Markdown and as JSON."""
    folder, slash, _ = str(out).rpartition("/")
    return f"{folder}{slash}data_card.md", f"{folder}{slash}data_card.json"


def _write_card(card: DataCard, out: str) -> None:
    from rbft.data.card_text import card_markdown

    markdown, json = card_paths(out)
    storage.write_bytes(markdown, card_markdown(card).encode())
    storage.write_json(json, card.to_json())


def _less_held_out(examples: Sequence[Example]) -> list[str]:
    """Ids of videos whose bytes are also in a split that is held out more strictly."""
    from rbft.data.reading import HELD_OUT_FIRST
    from rbft.data.split import find_leaks

    split_by_id = {example.id: example.split for example in examples}
    gone = []
    for leak in find_leaks(examples):
        stays = min(leak.splits, key=HELD_OUT_FIRST.index)
        gone += [id for id in leak.ids if split_by_id[id] != stays]
    return gone


def _split_and_file(text: str) -> tuple[str | None, str]:
    from rbft.data.manifest import SPLIT_ALIASES, unknown_split

    split, sign, path = text.partition("=")
    if not sign or Path(text).exists():
        return None, text
    name = SPLIT_ALIASES.get(split.lower(), split.lower())
    if name not in SPLITS:
        raise ConfigError(f"{text}: {unknown_split(split)}; write e.g. train={path}")
    return name, path
