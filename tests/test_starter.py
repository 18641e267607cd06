"""`rbft init`: what a folder says, what a person answers, and the two files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.config import load_config, load_task
from rbft.errors import ConfigError, DataError, ManifestError
from rbft.starter import Answers, Draft, ask, make_draft, write_files


def defaults(_question: str, default: str) -> str:
    return default


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


@pytest.fixture
def by_class(tmp_path: Path) -> Path:
    return touch(tmp_path / "My Clips", "Fall_Down/a.mp4", "Fall_Down/deep/b.mp4", "walking/c.mov", "walking/notes.txt")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    folder = touch(tmp_path / "flat", "a.mp4", "b.mp4", "c.mp4")
    (folder / "truth.csv").write_text("file,Class,note\na.mp4,Cat,x\nb.mp4,DOG,y\nc.mp4,cat,\n")
    return folder


def test_a_folder_a_class_becomes_files_that_load(by_class: Path, tmp_path: Path) -> None:
    draft = make_draft(by_class)
    assert (draft.labels, draft.aliases, draft.num_videos) == (("fall down", "walking"), {"Fall_Down": "fall down"}, 3)
    task_path, run_path = write_files(draft, ask(draft, {}, defaults), tmp_path / "configs")
    assert (task_path, run_path) == (tmp_path / "configs" / "tasks" / "my-clips.yaml", tmp_path / "configs" / "my-clips.yaml")
    config = load_config(run_path)
    assert config.task == load_task(task_path)
    assert config.task.question == "Is this video fall down or walking? Answer with one of these words only: fall down or walking."
    assert config.task.normalise_label("Fall_Down") == "fall down"
    assert config.data.folder == str(by_class)


def test_the_data_of_the_new_run_file_can_be_read(by_class: Path, flat: Path, tmp_path: Path) -> None:
    from rbft.data.source import read_examples

    touch(by_class, "walking/d.mp4")
    for folder, expected in ((by_class, {"fall down": 2, "walking": 2}), (touch(flat, "d.mp4"), {"cat": 2, "dog": 2})):
        if folder == flat:
            (flat / "truth.csv").write_text((flat / "truth.csv").read_text() + "d.mp4,dog,\n")
        draft = make_draft(folder)
        _, run_path = write_files(draft, ask(draft, {}, defaults), tmp_path / "configs")
        config = load_config(run_path)
        examples = read_examples(config.data, config.task, config.seed)
        assert {label: sum(example.label == label for example in examples) for label in config.task.labels} == expected
        assert all(Path(example.uri).is_file() for example in examples)
        assert {example.split for example in examples} == {"train", "test"}


def test_a_flat_folder_takes_its_labels_from_its_one_annotation_file(flat: Path, tmp_path: Path) -> None:
    draft = make_draft(flat)
    assert (draft.annotations, draft.label_column, draft.labels) == (flat / "truth.csv", "Class", ("cat", "dog"))
    _, run_path = write_files(draft, ask(draft, {}, defaults), tmp_path)
    data = load_config(run_path).data
    assert (data.annotations, data.columns, data.video_root) == (str(flat / "truth.csv"), {"label": "Class"}, str(flat))


def test_an_annotation_file_may_lie_elsewhere(flat: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "labels.jsonl"
    elsewhere.write_text('{"uri": "a.mp4", "label": "x"}\n{"uri": "b.mp4", "label": "y"}\n')
    draft = make_draft(flat, elsewhere)
    assert (draft.annotations, draft.labels) == (elsewhere, ("x", "y"))


@pytest.mark.parametrize(
    ("names", "error", "expected"),
    [
        ((), DataError, "no such folder"),
        (("a.txt",), ManifestError, "no video in it"),
        (("a.mp4",), ManifestError, "the folder holds none; name it with --annotations"),
        (("a.mp4", "x/b.mp4"), ManifestError, "name it with --annotations"),
        (("a.mp4", "x.csv", "y.jsonl"), ManifestError, "holds 2 of them"),
        (("only/a.mp4",), ManifestError, "1 different labels"),
    ],
)
def test_a_folder_that_says_too_little_is_refused(tmp_path: Path, names: tuple[str, ...], error: type[Exception], expected: str) -> None:
    with pytest.raises(error, match=expected):
        make_draft(touch(tmp_path / "videos", *names))


def test_an_annotation_file_without_labels_is_refused(flat: Path) -> None:
    (flat / "truth.csv").write_text("file,colour\na.mp4,red\n")
    with pytest.raises(ManifestError, match="no column is called label or class among file, colour"):
        make_draft(flat)
    (flat / "truth.csv").write_text("file,label\na.mp4,red\nb.mp4,\n")
    with pytest.raises(ManifestError, match="1 different labels"):
        make_draft(flat)


def test_flags_answer_first_and_a_person_the_rest(by_class: Path) -> None:
    asked: list[str] = []

    def person(question: str, default: str) -> str:
        asked.append(question)
        return {"The model is asked as a …": " nurse ", "GPUs to use (0: CPU only)": "2"}.get(question, "")

    answers = ask(make_draft(by_class), {"name": "falls", "labels": "Walking, fall  down, other"}, person)
    assert answers.labels == ("walking", "fall down", "other")
    assert (answers.name, answers.persona, answers.num_gpus) == ("falls", "nurse", 2)
    assert answers.question.startswith("Is this video walking, fall down or other?")
    assert not {"Name of the task", "Labels"} & set(asked)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"name": "a/b"}, "becomes a file name"),
        ({"labels": "walking"}, "the data also has fall down"),
        ({"gpus": "many"}, "must be a whole number"),
        ({"gpus": "-1"}, "must be a whole number"),
    ],
)
def test_an_answer_that_cannot_be_used_is_refused(by_class: Path, given: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        ask(make_draft(by_class), given, defaults)


@pytest.mark.parametrize("existing", ["configs/my-clips.yaml", "configs/tasks/my-clips.yaml"])
def test_nothing_is_overwritten_and_nothing_half_written(by_class: Path, tmp_path: Path, existing: str) -> None:
    touch(tmp_path, existing)
    draft = make_draft(by_class)
    with pytest.raises(ConfigError, match="exists already"):
        write_files(draft, ask(draft, {}, defaults), tmp_path / "configs")
    files = [path for path in (tmp_path / "configs").rglob("*") if path.is_file()]
    assert files == [tmp_path / existing]
    assert files[0].read_bytes() == b""


def test_files_that_would_not_load_are_not_left_behind(by_class: Path, tmp_path: Path) -> None:
    draft = make_draft(by_class)
    answers = Answers("x", ("fall down", "walking", "walking"), "nurse", "Which?", "model", 1)
    with pytest.raises(ConfigError, match="labels must be distinct"):
        write_files(draft, answers, tmp_path / "configs")
    assert not [path for path in (tmp_path / "configs").rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_written_is_named(by_class: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").write_text("a file")
    draft = make_draft(by_class)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_files(draft, ask(draft, {}, defaults), tmp_path / "configs")


@pytest.mark.parametrize("num_gpus", [0, 1, 2, 3, 4, 6, 8, 16, 24])
def test_the_run_file_loads_for_any_number_of_gpus(by_class: Path, tmp_path: Path, num_gpus: int) -> None:
    draft = make_draft(by_class)
    _, run_path = write_files(draft, ask(draft, {"gpus": str(num_gpus)}, defaults), tmp_path)
    config = load_config(run_path)
    training = config.training
    assert training.num_workers * training.num_gpus == config.engine.num_actors * config.engine.num_gpus == num_gpus
    assert 16 <= training.global_batch_size < 16 + max(num_gpus, 1)
    if num_gpus == 0:
        assert (training.precision, config.model.dtype) == ("fp32", "float32")


text = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1).filter(lambda words: words.strip())


@given(persona=text, question=text, folder=text)
def test_any_text_comes_back_from_the_files_as_it_was_given(
    tmp_path_factory: pytest.TempPathFactory, persona: str, question: str, folder: str
) -> None:
    out = tmp_path_factory.mktemp("init")
    draft = Draft(Path("/videos") / folder.replace("/", "_").replace("..", "_"), None, None, ("yes", "no"), {"1": "no"}, 4)
    _, run_path = write_files(draft, Answers("x", ("yes", "no"), persona, question, "/model", 1), out)
    config = load_config(run_path)
    assert (config.task.persona, config.task.question) == (persona.strip(), question.strip())
    assert (config.task.labels, config.task.label_aliases) == (("yes", "no"), {"1": "no"})
    assert config.data.folder == str(draft.folder)
