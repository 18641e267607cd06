"""`rbft init`: a task file and a run file from a folder of videos and a few answers.

    draft = make_draft(folder, annotations)         what the folder says: labels, where they stand
    answers = ask(draft, given, question)           what a person says, flags first, sensible defaults
    paths = write_files(draft, answers, out)        configs/tasks/<name>.yaml and configs/<name>.yaml, never over an existing file

The folder holds a sub-folder a class, or videos and one annotation file (CSV, TSV, JSONL, Parquet) with a column of labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from rbft.config import load_config
from rbft.data.importers import GUESSES
from rbft.data.locations import list_videos
from rbft.data.tables import columns_of, literal_list, read_rows
from rbft.errors import ConfigError, ManifestError

_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_MAX_LABELS = 50
"""More different values than this are no classes but free text."""
_PAPER_BATCH = 16
_PAPER_MICRO_BATCH = 2


@dataclass(frozen=True)
class Draft:
    """What a folder says about its task."""

    folder: Path
    annotations: Path | None
    """None where every class has a folder."""
    label_column: str | None
    labels: tuple[str, ...]
    """Plain lowercase words, in the order of their first appearance, sub-folders by name."""
    aliases: dict[str, str]
    """Label as written -> plain label, where they differ by more than case and space."""
    num_videos: int


@dataclass(frozen=True)
class Answers:
    """What a person says about the task."""

    name: str
    labels: tuple[str, ...]
    persona: str
    question: str
    model: str
    num_gpus: int


Ask = Callable[[str, str], str]
"""(question, default) -> answer."""


def make_draft(folder: str | Path, annotations: str | Path | None = None) -> Draft:
    """What `folder` and its annotation file say. Raises `DataError` or `ManifestError` where that is not enough for a task."""
    folder = Path(folder).absolute()
    videos = [PurePosixPath(video) for video in list_videos(folder)]
    if not videos:
        raise ManifestError(f"{folder}: no video in it; name the folder that holds the videos")
    if annotations is None and all(len(video.parts) > 1 for video in videos):
        written = sorted({video.parts[0] for video in videos})
        return Draft(folder, None, None, *_plain_labels(written, str(folder)), len(videos))
    table = Path(annotations).absolute() if annotations is not None else _only_table(folder)
    column = _label_column(table)
    written = list(dict.fromkeys(item for row in read_rows(table) for item in literal_list(row.text(column) or "") if item))
    return Draft(folder, table, column, *_plain_labels(written, f"{table}: column {column!r}"), len(videos))


def ask(draft: Draft, given: dict[str, str], question: Ask) -> Answers:
    """The answers in `given` (fields of `Answers`, labels joined with commas), the others from `question`.

    Raises `ConfigError` for an answer that cannot be used.
    """

    def answer(field: str, text: str, default: str) -> str:
        return (given[field] if field in given else question(text, default)).strip() or default

    name = answer("name", "Name of the task", re.sub(r"[^a-z0-9]+", "-", draft.folder.name.lower()).strip("-") or "task")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"name {name!r} becomes a file name; write letters, digits, '.', '_' and '-'")
    labels = tuple(
        " ".join(label.lower().split()) for label in answer("labels", "Labels", ", ".join(draft.labels)).split(",") if label.strip()
    )
    strange = [label for label in draft.labels if label not in labels]
    if strange:
        raise ConfigError(
            f"labels: the data also has {', '.join(strange)}; name all of them (videos of a class can be left out of the data)"
        )
    persona = answer("persona", "The model is asked as a …", "video analyst")
    choice = f"{', '.join(labels[:-1])} or {labels[-1]}"
    asked = answer("question", "Question", f"Is this video {choice}? Answer with one of these words only: {choice}.")
    model = answer("model", "Folder of the model", "models/Qwen2.5-VL-7B-Instruct")
    gpus = answer("gpus", "GPUs to use (0: CPU only)", "8")
    if not gpus.isdigit():
        raise ConfigError(f"gpus {gpus!r} must be a whole number, 0 for CPU only")
    return Answers(name, labels, persona, asked, str(Path(model).absolute()), int(gpus))


def write_files(draft: Draft, answers: Answers, out: str | Path) -> tuple[Path, Path]:
    """The paths of the task file and the run file written below the folder `out`. Raises `ConfigError` if one of them exists."""
    run_path = Path(out) / f"{answers.name}.yaml"
    task_path = Path(out) / "tasks" / f"{answers.name}.yaml"
    for path in (task_path, run_path):
        if path.exists():
            raise ConfigError(f"{path}: exists already; choose another name or folder, or remove it")
    written: list[Path] = []
    try:
        task_path.parent.mkdir(parents=True, exist_ok=True)
        for path, text in ((task_path, _task_text(draft, answers)), (run_path, _run_text(draft, answers))):
            with path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
        load_config(run_path)
    except (OSError, ConfigError) as error:
        for path in written:
            path.unlink(missing_ok=True)
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{out}: cannot be written ({error}); name a folder you may write to") from None
    return task_path, run_path


def _only_table(folder: Path) -> Path:
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in _TABLES)
    if len(tables) == 1:
        return tables[0]
    found = f"holds {len(tables)} of them ({', '.join(table.name for table in tables[:3])})" if tables else "holds none"
    raise ManifestError(
        f"{folder}: its videos are not in one folder a class, so an annotation file must say their labels, and the folder {found}; "
        "name it with --annotations"
    )


def _label_column(table: Path) -> str:
    columns = columns_of(table)
    by_plain = {column.strip().lower().replace(" ", "_"): column for column in columns}
    found = next((by_plain[name] for name in GUESSES["label"] if name in by_plain), None)
    if found is None:
        raise ManifestError(
            f"{table}: no column is called {' or '.join(GUESSES['label'][:2])} among {', '.join(columns)}; rename the one with the labels"
        )
    return found


def _plain_labels(written: Sequence[str], where: str) -> tuple[tuple[str, ...], dict[str, str]]:
    plain = {label: " ".join(re.sub(r"[_-]+", " ", label.lower()).split()) for label in written}
    labels = tuple(dict.fromkeys(label for label in plain.values() if label))
    if not 2 <= len(labels) <= _MAX_LABELS:
        some = f" ({', '.join(labels[:3])})" if labels else ""
        raise ManifestError(f"{where}: {len(labels)} different labels{some}; a classification needs 2 to {_MAX_LABELS}")
    return labels, {label: words for label, words in plain.items() if " ".join(label.lower().split()) != words}


def _task_text(draft: Draft, answers: Answers) -> str:
    aliases = f"label_aliases: {_inline(draft.aliases)} # as the data writes them\n" if draft.aliases else ""
    return f"""\
# What is classified and how the model is asked. Worth a second look: persona, dimensions and question decide what it attends to.
name: {_inline(answers.name)}
labels: {_inline(list(answers.labels))}
{aliases}persona: {_inline(answers.persona)}
dimensions: # the headings of a rationale (paper 3)
  - {{heading: Subjects, describe: "the main people, animals and objects"}}
  - {{heading: Attributes, describe: "their key characteristics, such as kind, size or clothing"}}
  - {{heading: Actions, describe: "what they do, how they move and what they do to each other"}}
  - {{heading: Scenes, describe: "the place, the light and what is around"}}
question: {_inline(answers.question)}
"""


def _run_text(draft: Draft, answers: Answers) -> str:
    if draft.annotations is None:
        data = f"  folder: {_inline(str(draft.folder))} # a sub-folder a class"
    else:
        columns = f"\n  columns: {_inline({'label': draft.label_column})}"
        data = f"  annotations: {_inline(str(draft.annotations))}{columns}\n  video_root: {_inline(str(draft.folder))}"
    return f"""\
# A run of RB-FT. What is not written here has the paper's value, from rbft/config/; `rbft plan` prints what it comes to.
name: {_inline(answers.name)}
task: tasks/{answers.name}.yaml

data:
{data}
  fractions: {{train: 0.8, test: 0.2}} # where the data carries no split

model:
  path: {_inline(answers.model)}
{_devices_text(answers.num_gpus)}"""


def _devices_text(num_gpus: int) -> str:
    num_workers = max(1, num_gpus)
    # The paper's global batch where the workers divide it, else the next larger one that they do.
    global_batch = -(-_PAPER_BATCH // num_workers) * num_workers
    micro_batch = _PAPER_MICRO_BATCH if global_batch % (num_workers * _PAPER_MICRO_BATCH) == 0 else 1
    comment = "" if global_batch == _PAPER_BATCH else f" # the paper has {_PAPER_BATCH}, which does not divide by these workers"
    batch = f"  global_batch_size: {global_batch}{comment}"
    if num_gpus > 0:
        return f"""
engine:
  num_actors: {num_workers} # one engine a GPU

training:
  num_workers: {num_workers}
{batch}
  micro_batch_size: {micro_batch}
"""
    return f"""  dtype: float32

engine:
  num_actors: 1
  num_cpus: 1
  num_gpus: 0 # vLLM's CPU backend

training:
  num_workers: 1
  num_cpus: 1
  num_gpus: 0
{batch}
  micro_batch_size: {micro_batch}
  precision: fp32
"""


def _inline(value: object) -> str:
    """`value` as YAML on one line, quoted where it must be."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
