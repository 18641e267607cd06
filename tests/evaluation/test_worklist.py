"""Predictions on their way out: which come first, and that Label Studio and FiftyOne can read what is written for them."""

from __future__ import annotations

import csv
import io
import json
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.errors import DataError
from rbft.evaluation.worklist import (
    fiftyone_samples,
    label_studio_interface,
    label_studio_tasks,
    least_certain,
    predictions_csv,
)
from rbft.records import Example, Prediction

LABELS = ("normal", "abnormal")
ROWS = [
    Prediction("sure", "normal", "normal", {"normal": 0.99, "abnormal": 0.01}),
    Prediction("unsure", "abnormal", "normal", {"normal": 0.51, "abnormal": 0.49}, {}, '<b>"normal"</b>', "normal"),
    Prediction("broken", "normal", None, error_code="video_decode", error_message="truncated"),
    Prediction("new", None, "abnormal", {"normal": 0.3, "abnormal": 0.7}),
]
EXAMPLES = {
    row.id: Example(row.id, f"/data/videos/{row.id} 1.mp4", row.label, "test", start_s=2.0, end_s=-1.0, category="Wildlife, Pets")
    for row in ROWS
}


def test_the_least_certain_come_first_and_those_without_an_answer_before_them() -> None:
    assert [row.id for row in least_certain(ROWS, "likelihood")] == ["broken", "unsure", "new", "sure"]
    assert [row.id for row in least_certain(ROWS, "likelihood", below=0.6)] == ["broken", "unsure"]
    assert [row.id for row in least_certain(ROWS, "likelihood", wrong_only=True)] == ["broken", "unsure"]
    assert [row.id for row in least_certain(ROWS, "likelihood", limit=1)] == ["broken"]


@given(st.lists(st.floats(0.5, 1.0), max_size=20), st.floats(0, 1))
def test_below_takes_all_that_are_and_no_other(shares: list[float], below: float) -> None:
    rows = [Prediction(str(i), "normal", "normal", {"normal": share, "abnormal": 1 - share}) for i, share in enumerate(shares)]
    found = [row.probabilities["normal"] for row in least_certain(rows, "likelihood", below=below)]
    assert found == sorted(share for share in shares if share < below)


def test_a_limit_on_confidence_needs_probabilities() -> None:
    with pytest.raises(DataError, match=r"1 answers have no probability, e\.g\. that for 'x'"):
        least_certain([Prediction("x", "normal", "normal")], "likelihood", below=0.5)


def test_the_csv_has_everything_and_a_spreadsheet_reads_it_as_utf8() -> None:
    content = predictions_csv(ROWS, EXAMPLES, LABELS, "likelihood")
    assert content.startswith(b"\xef\xbb\xbf")
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(content.decode("utf-8-sig")))}
    assert [rows[id_]["correct"] for id_ in ("sure", "unsure", "broken", "new")] == ["yes", "no", "no", ""]
    assert rows["unsure"]["confidence"] == "0.51" and rows["unsure"]["probability_abnormal"] == "0.49"
    assert rows["unsure"]["generated"] == '<b>"normal"</b>' and rows["broken"]["error_code"] == "video_decode"
    assert rows["sure"]["uri"] == "/data/videos/sure 1.mp4" and rows["sure"]["category"] == "Wildlife, Pets"
    assert rows["broken"]["confidence"] == rows["broken"]["predicted"] == ""


def test_label_studio_tasks_are_pre_annotated_as_its_guide_says_and_fit_the_interface() -> None:
    # https://labelstud.io/guide/predictions: "data", and "predictions" with a "result" whose names and values are the interface's.
    tasks = json.loads(
        json.dumps(
            label_studio_tasks(
                least_certain(ROWS, "likelihood"), EXAMPLES, "rb-ft", "likelihood", url_prefix=("/data/", "https://example.org/")
            )
        )
    )
    interface = ElementTree.fromstring(label_studio_interface(LABELS))
    video, choices = interface.find("Video"), interface.find("Choices")
    assert video is not None and choices is not None and choices.get("toName") == video.get("name")
    offered = [choice.get("value") for choice in choices]
    assert offered == list(LABELS)
    for task in tasks:
        assert task["data"][str(video.get("value")).removeprefix("$")].startswith("https://example.org/videos/")
        assert "label" not in task["data"]  # whoever labels must not see what is there already
        for prediction in task.get("predictions", []):
            (result,) = prediction["result"]
            assert (result["from_name"], result["to_name"], result["type"]) == (choices.get("name"), video.get("name"), "choices")
            assert len(result["value"]["choices"]) == 1 and result["value"]["choices"][0] in offered
            assert prediction["model_version"] == "rb-ft" and 0 <= prediction["score"] <= 1
    assert [task["data"]["id"] for task in tasks] == ["broken", "unsure", "new", "sure"]
    assert "predictions" not in tasks[0] and tasks[1]["predictions"][0]["score"] == 0.51


def test_labels_are_escaped_in_the_interface() -> None:
    choices = ElementTree.fromstring(label_studio_interface(('a "b" & <c>', "d"))).find("Choices")
    assert choices is not None and choices[0].get("value") == 'a "b" & <c>'


def test_a_video_outside_the_folder_that_is_replaced_is_refused() -> None:
    with pytest.raises(DataError, match=r"/data/videos/sure 1\.mp4: does not begin with '/elsewhere/'"):
        label_studio_tasks(ROWS[:1], EXAMPLES, "rb-ft", "likelihood", url_prefix=("/elsewhere/", "https://example.org/"))


def test_fiftyone_samples_are_what_sample_from_dict_takes() -> None:
    # fiftyone.core.sample.Sample.from_dict: `_media_type` is taken off, the others are fields; embedded documents name their class.
    found = json.loads(json.dumps(fiftyone_samples(ROWS, EXAMPLES, "rb-ft", "likelihood")))
    assert list(found) == ["samples"]
    by_id: dict[str, dict[str, Any]] = {sample["rbft_id"]: sample for sample in found["samples"]}
    fields = {frozenset(sample) for sample in by_id.values()}
    assert len(fields) == 1  # a dataset's samples share their fields
    for sample in by_id.values():
        assert sample["_media_type"] == "video" and sample["filepath"].startswith("/")
        assert all(isinstance(tag, str) for tag in sample["tags"]) and sample["metadata"] is None
        assert not any(name.startswith("_") for name in sample if name != "_media_type")
        for name in ("ground_truth", "prediction"):
            if sample[name] is not None:
                assert set(sample[name]) == {"_cls", "tags", "label", "confidence", "logits"}
                assert sample[name]["_cls"] == "Classification" and sample[name]["label"] in LABELS
    assert by_id["unsure"]["tags"] == ["test", "wrong"] and by_id["broken"]["tags"] == ["test", "wrong", "no answer"]
    assert by_id["new"]["ground_truth"] is None and by_id["broken"]["prediction"] is None
    assert by_id["unsure"]["prediction"]["confidence"] == 0.51


def test_a_prediction_of_no_video_of_the_manifest_is_refused() -> None:
    with pytest.raises(DataError, match="prediction x: is of no video of the manifest"):
        fiftyone_samples([Prediction("x", None, "normal")], EXAMPLES, "rb-ft", "likelihood")


def test_a_system_that_tells_no_likelihoods_is_read_by_its_text() -> None:
    text_only = [
        Prediction("sure", "normal", None, generated="It is normal.", generated_label="normal"),
        Prediction("unsure", "abnormal", None, generated="It is normal.", generated_label="normal"),
        Prediction("broken", "normal", None, error_code="model_refused", error_message="I cannot", generated="I cannot"),
    ]
    wrong = least_certain(text_only, "generate", wrong_only=True)
    assert [row.id for row in wrong] == ["broken", "unsure"]
    table = csv.DictReader(io.StringIO(predictions_csv(text_only, EXAMPLES, LABELS, "generate").decode("utf-8-sig")))
    assert [(row["predicted"], row["correct"]) for row in table] == [("normal", "yes"), ("normal", "no"), ("", "no")]
    samples = fiftyone_samples(text_only, EXAMPLES, "gpt-4o", "generate")["samples"]
    assert [sample["tags"] for sample in samples] == [["test"], ["test", "wrong"], ["test", "wrong", "no answer"]]
    assert samples[0]["prediction"]["label"] == "normal" and samples[2]["prediction"] is None
    tasks = label_studio_tasks(wrong, EXAMPLES, "gpt-4o", "generate")
    assert "predictions" not in tasks[0] and tasks[1]["predictions"][0]["result"][0]["value"]["choices"] == ["normal"]
    with pytest.raises(DataError, match="2 answers have no probability"):
        least_certain(text_only, "generate", below=0.5)
