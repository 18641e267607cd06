"""Predictions made elsewhere: what is read, and everything that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbft.errors import DataError
from rbft.evaluation.import_predictions import import_predictions
from rbft.evaluation.worklist import predictions_csv
from rbft.records import Example, Prediction
from rbft.task import Dimension, Task

TASK = Task(
    name="homes",
    labels=("normal", "very odd"),
    persona="expert",
    dimensions=(Dimension(heading="Scene", describe="where"),),
    question="Normal or very odd?",
    label_aliases={"Vague": "very odd"},
)
EXAMPLES = [
    Example("-a", "a.mp4", "normal", "test"),
    Example("b/c", "b.mp4", "very odd", "test"),
    Example("d,e", "d.mp4", "normal", "test"),
    Example("unlabelled", "u.mp4", None, "test"),
]


def _write(folder: Path, text: str, name: str = "answers.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_is_read_in_the_manifests_order_with_aliases_blanks_and_probabilities(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        "\ufeffid,predicted,probability_normal,probability_very odd,note\r\n"
        'b/c, VAGUE ,0.25,0.75,x\r\n"d,e",,,,refused\r\n-a,Normal,0.9,0.1,\r\n',
    )
    assert import_predictions(path, EXAMPLES, TASK) == [
        Prediction("-a", "normal", "normal", {"normal": 0.9, "very odd": 0.1}),
        Prediction("b/c", "very odd", "very odd", {"normal": 0.25, "very odd": 0.75}),
        Prediction("d,e", "normal", None, error_code="no_answer"),
    ]


ROWS = [{"id": "-a", "predicted": "normal"}, {"id": "b/c", "predicted": "normal"}, {"id": "d,e", "predicted": None}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("answers.json", json.dumps(ROWS)),
        ("answers.json", json.dumps({"-a": "normal", "b/c": {"predicted": "normal"}, "d,e": None})),
        ("answers.jsonl", "\n".join(json.dumps(row) for row in ROWS)),
        ("answers.tsv", "id\tpredicted\n-a\tnormal\nb/c\tnormal\nd,e\t\n"),
    ],
)
def test_the_formats_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    assert [row.predicted for row in import_predictions(_write(tmp_path, text, name), EXAMPLES, TASK)] == ["normal", "normal", None]


def test_nested_probabilities_without_an_answer_are_answered_by_the_likeliest_label(tmp_path: Path) -> None:
    rows = [{"id": example.id, "probabilities": {"normal": 0.3, "very odd": 0.7}} for example in EXAMPLES[:3]]
    found = import_predictions(_write(tmp_path, json.dumps(rows), "p.json"), EXAMPLES, TASK)
    assert {row.predicted for row in found} == {"very odd"}


def test_columns_called_otherwise_are_named(tmp_path: Path) -> None:
    path = _write(tmp_path, 'video,label\n-a,very odd\nb/c,very odd\n"d,e",normal\n')
    with pytest.raises(DataError, match="no column 'id'; its columns are label, video; say --id-column"):
        import_predictions(path, EXAMPLES, TASK)
    with pytest.raises(DataError, match="no column 'predicted' and no probabilities"):
        import_predictions(path, EXAMPLES, TASK, id_column="video")
    found = import_predictions(path, EXAMPLES, TASK, id_column="video", answer_column="label")
    assert [row.predicted for row in found] == ["very odd", "very odd", "normal"]


def test_ids_that_are_unknown_missing_or_twice_are_each_counted_and_named(tmp_path: Path) -> None:
    path = _write(tmp_path, "id,predicted\n-a,normal\n-a,normal\nz,normal\ny,normal\nunlabelled,normal\n")
    with pytest.raises(DataError) as caught:
        import_predictions(path, EXAMPLES, TASK)
    message = str(caught.value)
    assert "do not fit the 3 videos" in message
    assert "3 unknown, which are no labelled videos of the split: 'unlabelled', 'y', 'z'" in message
    assert "2 missing, for which there must be a row, with a blank answer if there is none: 'b/c', 'd,e'" in message
    assert "1 there more than once: '-a'" in message


@settings(max_examples=50, deadline=None)
@given(ids=st.lists(st.sampled_from(["-a", "b/c", "d,e", "z"]), min_size=1, max_size=6))
def test_only_the_very_set_of_ids_is_taken(tmp_path_factory: pytest.TempPathFactory, ids: list[str]) -> None:
    path = _write(tmp_path_factory.mktemp("ids"), "\n".join(json.dumps({"id": id_, "predicted": "normal"}) for id_ in ids), "p.jsonl")
    if sorted(ids) == ["-a", "b/c", "d,e"]:
        assert [row.id for row in import_predictions(path, EXAMPLES, TASK)] == ["-a", "b/c", "d,e"]
    else:
        with pytest.raises(DataError, match="its ids do not fit"):
            import_predictions(path, EXAMPLES, TASK)


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ({"predicted": "abnormal"}, r"row 1|line 1: label 'abnormal' is not one of task 'homes'"),
        ({"predicted": "normal", "label": "very odd"}, "says that the true label of '-a' is 'very odd', the manifest 'normal'"),
        ({"probabilities": {"normal": 0.5}}, "none of 'very odd'"),
        ({"probabilities": {"normal": 0.5, "very odd": 0.4}}, "sum to 0.9000, not 1"),
        ({"probabilities": {"normal": 90, "very odd": 10}}, "the probability of 'normal' is 90; give a number from 0 to 1"),
        ({"probabilities": {"normal": "much", "very odd": 0.1}}, "the probability of 'normal' is 'much'"),
        ({"probabilities": {"normal": 0.5, "odd": 0.5}}, "a probability of label 'odd' is not one of task"),
        ({"probabilities": {"normal": 0.5, "very odd": 0.2, "vague": 0.3}}, "two probabilities of 'very odd'"),
    ],
)
def test_labels_and_probabilities_that_do_not_fit_are_refused_with_the_line(tmp_path: Path, cells: dict[str, object], says: str) -> None:
    rest = [{"id": example.id, "predicted": "normal"} for example in EXAMPLES[1:3]]
    path = _write(tmp_path, json.dumps([{"id": "-a", **cells}, *rest]), "p.json")
    with pytest.raises(DataError, match=says) as caught:
        import_predictions(path, EXAMPLES, TASK)
    assert f"{path} line 1" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[1]", '"x"'])
def test_a_file_that_is_no_table_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"p\.json"):
        import_predictions(_write(tmp_path, text, "p.json"), EXAMPLES, TASK)


def test_what_we_export_as_csv_comes_back(tmp_path: Path) -> None:
    rows = [
        Prediction("-a", "normal", "very odd", {"normal": 0.125, "very odd": 0.875}, {}, 'It is "normal",\nor very odd', None),
        Prediction("b/c", "very odd", "very odd", {"normal": 0.5, "very odd": 0.5}, {}, "Very odd", "very odd"),
        Prediction("d,e", "normal", None, error_code="video_decode", error_message="d.mp4: truncated"),
    ]
    path = tmp_path / "out.csv"
    path.write_bytes(predictions_csv(rows, {example.id: example for example in EXAMPLES}, TASK.labels, "likelihood"))
    assert import_predictions(path, EXAMPLES, TASK) == rows
