import shutil
from collections import Counter

import pytest

from rbft.data.manifest import validate_examples
from rbft.data.multihateclip import read_multihateclip
from rbft.data.reading import IN_TWO_SPLITS, PRIVATE
from rbft.data.smarthome import read_smarthome
from rbft.data.split import check_leaks
from rbft.errors import ManifestError
from rbft.records import Example
from rbft.task import Task


def test_smarthome_rows_become_examples(fixtures, task, tmp_path):
    (tmp_path / "smartbench_0002.mov").touch()
    (tmp_path / "smartbench_0008.mp4").touch()
    reading = read_smarthome(fixtures / "smarthome", task, video_root=tmp_path)
    examples = reading.examples
    assert Counter(example.label for example in examples) == {"normal": 3, "abnormal": 4}
    # 0004 is private and not there; 0008 is private, but its file is there.
    assert [example.id[-1] for example in examples] == list("1235678")
    assert examples[1] == Example(
        id="smartbench_0002",
        uri=str(tmp_path / "smartbench_0002.mov"),
        label="abnormal",
        end_s=-7.0,
        human_text="A brown bear tips over a bin in a driveway at night.\nA bear near the house may hurt someone.",
        category="Wildlife",
    )
    assert examples[2].category == "Security, Wildlife"
    assert examples[2].uri == str(tmp_path / "smartbench_0003.mp4")
    assert [(example.start_s, example.end_s) for example in examples] == [
        (None, None), (None, -7.0), (None, None), (6.0, None), (None, None), (None, None), (None, None),
    ]  # fmt: skip
    validate_examples(examples, task)
    assert [(left.example.id, left.example.label, left.reason) for left in reading.left_out] == [("smartbench_0004", "normal", PRIVATE)]
    assert reading.notes == (
        "Labelled 'Vague Abnormal', counted as abnormal: 1.",
        "Trim_video_label.csv: 3 rows (last seconds dropped: 1, first seconds dropped: 1, kept whole: 1); "
        "videos without a row are used whole.",
    )


def test_smarthome_is_read_whole_without_trim_and_url_files_and_under_its_other_column_name(fixtures, task, tmp_path):
    text = (fixtures / "smarthome/Annotation_vad_1203.csv").read_bytes()
    (tmp_path / "Video_Annotation.csv").write_bytes(text.replace(b"Category,Label", b"Category,Anomaly Tag", 1))
    reading = read_smarthome(tmp_path, task)
    assert Counter(example.label for example in reading.examples) == {"normal": 4, "abnormal": 4}
    assert {example.end_s for example in reading.examples} == {None}
    assert "There is no Trim_video_label.csv: every video is used whole." in reading.notes
    assert read_smarthome(tmp_path / "Video_Annotation.csv", task) == reading, "the file may be named instead of its folder"


def test_vague_abnormal_may_be_a_class_of_its_own_and_is_refused_where_the_task_does_not_know_it(fixtures, task):
    own = Task(**{**task.model_dump(), "labels": ("normal", "abnormal", "vague abnormal"), "label_aliases": {}})
    assert Counter(example.label for example in read_smarthome(fixtures / "smarthome", own).examples)["vague abnormal"] == 1
    without = Task(**{**task.model_dump(), "label_aliases": {}})
    with pytest.raises(ManifestError, match=r"Annotation_vad_1203\.csv line 4: label 'Vague Abnormal'"):
        read_smarthome(fixtures / "smarthome", without)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("Trim_video_label.csv", "No.,Title,Time\n1,smartbench_9999,3\n", "'smartbench_9999' is not in Annotation_vad_1203.csv"),
        ("Trim_video_label.csv", "No.,Title,Time\n1,smartbench_0001,x\n", "line 2: column 'Time' holds 'x'"),
        ("Trim_video_label.csv", "No.,Title,Time\n1,smartbench_0001,\n", "line 2: column 'Time' is empty"),
        (
            "Trim_video_label.csv",
            "No.,Title,Time\n1,smartbench_0001,1\n2,smartbench_0001,2\n",
            "line 3: 'smartbench_0001' has a trim already",
        ),
        (
            "Annotation_vad_1203.csv",
            "Title,Category,Video Description,Reasoning behind Normality/Anomalies\n",
            "lacks .* Label or Anomaly Tag",
        ),
        ("Annotation_vad_1203.csv", "Title,Label\n", r"lacks the column\(s\) Category, Video Description"),
    ],
)
def test_smarthome_files_of_another_shape_are_refused(fixtures, task, tmp_path, name, content, says):
    folder = shutil.copytree(fixtures / "smarthome", tmp_path / "smarthome")
    (folder / name).write_text(content)
    with pytest.raises(ManifestError, match=says):
        read_smarthome(folder, task)


def test_a_folder_without_the_annotations_is_named(task, hate_task, tmp_path):
    with pytest.raises(ManifestError, match="holds neither"):
        read_smarthome(tmp_path, task)
    with pytest.raises(ManifestError, match=r"train\.tsv: cannot be opened"):
        read_multihateclip(tmp_path, hate_task)


def test_multihateclip_rows_become_examples_with_the_published_split(fixtures, hate_task):
    reading = read_multihateclip(fixtures / "multihateclip", hate_task, with_text=True)
    examples = reading.examples
    assert Counter((example.split, example.label) for example in examples) == {
        ("train", "normal"): 2, ("train", "offensive"): 1, ("train", "hateful"): 1,
        ("validation", "normal"): 1, ("validation", "offensive"): 1,
        ("test", "normal"): 1, ("test", "offensive"): 1, ("test", "hateful"): 1,
    }  # fmt: skip
    assert examples[0] == Example(
        id="-aaaaaaaaa1",
        uri=str(fixtures / "multihateclip/-aaaaaaaaa1.mp4"),
        label="normal",
        split="train",
        context="Title: How I bake bread\nTranscript: First the flour.",
    )
    assert {example.id: example.context for example in examples[1:]} == {
        "aaaaaaaaaa2": "Title: Rain on a roof",
        "aaaaaaaaaa3": "Transcript: My neighbour again.",
        "aaaaaaaaaa4": None,
        "bbbbbbbbbb1": None,
        "bbbbbbbbbb2": None,
        "cccccccccc1": "Title: A bus goes by, doesn't it?",
        "ccccccccc_2": None,
        "cccccccccc3": None,
    }
    check_leaks(examples)
    validate_examples(examples, hate_task)
    assert [(left.example.id, left.example.split, left.reason) for left in reading.left_out] == [("ccccccccc_2", "train", IN_TWO_SPLITS)]
    assert reading.notes == ("Title and transcript go before the prompt of 4 of 9 videos; the others have neither.",)


def test_multihateclips_titles_and_transcripts_are_read_where_that_is_asked(fixtures, hate_task, tmp_path):
    folder = shutil.copytree(fixtures / "multihateclip", tmp_path / "mhc")
    (folder / "text.json").unlink()
    assert {example.context for example in read_multihateclip(folder, hate_task).examples} == {None}
    with pytest.raises(ManifestError, match=r"text\.json: cannot be read"):
        read_multihateclip(folder, hate_task, with_text=True)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("text.json", "{", r"text\.json: cannot be read as JSON"),
        ("text.json", "[]", r"text\.json: is a list"),
        ("valid.tsv", "Video_ID\tLabel\n", r"valid\.tsv: lacks the column\(s\) Majority_Voting"),
        ("valid.tsv", "Video_ID\tMajority_Voting\na\tNormal\na\tNormal\n", r"valid\.tsv line 3: id 'a' stands on line 2 already"),
        ("valid.tsv", "Video_ID\tMajority_Voting\na\tCounter Narrative\n", r"valid\.tsv line 2: label 'Counter Narrative'"),
    ],
)
def test_multihateclip_files_of_another_shape_are_refused(fixtures, hate_task, tmp_path, name, content, says):
    folder = shutil.copytree(fixtures / "multihateclip", tmp_path / "mhc")
    (folder / name).write_text(content)
    with pytest.raises(ManifestError, match=says):
        read_multihateclip(folder, hate_task, with_text=True)
