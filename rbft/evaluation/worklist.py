"""Predictions on their way out: all of them as CSV, and the least certain ones for people to look at in Label Studio or FiftyOne.

**CSV.** One row a prediction with everything that is known of it; `rbft.evaluation.import_predictions` reads it back.

**Label Studio.** A list of tasks in its basic JSON format with pre-annotations (https://labelstud.io/guide/predictions), to be imported
into a project whose labelling interface is `label_studio_interface`. It fetches videos over HTTP or from its local-files storage, so
locations are rewritten by a prefix.

**FiftyOne.** A file of samples in the form of `fiftyone.Sample.to_dict`, labels being `fiftyone.Classification`s:

    dataset = fiftyone.Dataset("to-look-at")
    dataset.add_samples([fiftyone.Sample.from_dict(sample) for sample in json.load(open("samples.json"))["samples"]])
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from rbft.errors import DataError
from rbft.evaluation.import_predictions import PROBABILITY_PREFIX
from rbft.evaluation.metrics import Mode, answer, confidence
from rbft.records import Example, Prediction

_CHOICE, _VIDEO = "label", "video"
"""Names of the two tags of the labelling interface, which every task refers to."""


def is_wrong(prediction: Prediction, mode: Mode) -> bool:
    """Whether the answer is not the true label, which no answer is not either; an unknown true label is no mistake."""
    return prediction.label is not None and answer(prediction, mode) != prediction.label


def least_certain(
    predictions: Sequence[Prediction], mode: Mode, *, below: float | None = None, wrong_only: bool = False, limit: int | None = None
) -> list[Prediction]:
    """The predictions by confidence, the lowest first, those without an answer before them; of equals by id.

    `mode` says here and below how the answers of the whole system are read (`metrics.answered_modes`): its rows alone do not tell.

    `below`: only those with less confidence, or without an answer. `wrong_only`: only mistakes. `limit`: the first so many.

    Raises:
        DataError: `below`, and an answer without a probability.
    """
    unsure = [row for row in predictions if answer(row, mode) is not None and confidence(row, mode) is None]
    if below is not None and unsure:
        raise DataError(
            f"{len(unsure)} answers have no probability, e.g. that for {unsure[0].id!r}; leave --below out, or give probabilities"
        )
    sureness = {row.id: confidence(row, mode) or 0.0 for row in predictions}
    chosen = [row for row in predictions if (below is None or sureness[row.id] < below) and (is_wrong(row, mode) or not wrong_only)]
    return sorted(chosen, key=lambda row: (answer(row, mode) is not None, sureness[row.id], row.id))[:limit]


def predictions_csv(rows: Sequence[Prediction], examples: Mapping[str, Example], labels: Sequence[str], mode: Mode) -> bytes:
    """The rows as CSV in UTF-8 with a byte-order mark, without which spreadsheets take it for something else. `examples`: id -> example."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    shares = [f"{PROBABILITY_PREFIX}{label}" for label in labels]
    own = ("generated", "generated_label", "error_code", "error_message")
    about = ("split", "category", "uri", "start_s", "end_s")
    writer.writerow(["id", "label", "predicted", "correct", "confidence", *shares, *own, *about])
    for row in rows:
        correct = "" if row.label is None else "no" if is_wrong(row, mode) else "yes"
        example = examples.get(row.id)
        cells = [row.id, row.label, answer(row, mode), correct, confidence(row, mode), *map(row.probabilities.get, labels)]
        cells += [getattr(row, name) for name in own] + [getattr(example, name, None) for name in about]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return buffer.getvalue().encode("utf-8-sig")


def label_studio_tasks(
    rows: Sequence[Prediction], examples: Mapping[str, Example], system: str, mode: Mode, *, url_prefix: tuple[str, str] | None = None
) -> list[dict[str, Any]]:
    """A task for each row, in their order: the video, what is known of it, and the system's answer as a pre-annotation with its score.

    `url_prefix`: (beginning of the locations, what to write in its place). The true label is not in a task: whoever labels should not
    see it.

    Raises:
        DataError: a row whose video is not in `examples`, or whose location does not begin with the prefix.
    """
    tasks = []
    for row in rows:
        example = _example(row, examples)
        data = {_VIDEO: _url(example, url_prefix), "id": row.id, "confidence": confidence(row, mode), "error_code": row.error_code}
        data |= {"category": example.category, "start_s": example.start_s, "end_s": example.end_s}
        task: dict[str, Any] = {"data": {key: value for key, value in data.items() if value is not None}}
        if (said := answer(row, mode)) is not None:
            result = {"id": "answer", "type": "choices", "from_name": _CHOICE, "to_name": _VIDEO, "value": {"choices": [said]}}
            score = {} if confidence(row, mode) is None else {"score": confidence(row, mode)}
            task["predictions"] = [{"model_version": system, **score, "result": [result]}]
        tasks.append(task)
    return tasks


def label_studio_interface(labels: Sequence[str]) -> str:
    """The labelling interface (XML) of a project that takes `label_studio_tasks`."""
    choices = "\n".join(f"    <Choice value={quoteattr(label)}/>" for label in labels)
    return (
        f'<View>\n  <Video name="{_VIDEO}" value="${_VIDEO}"/>\n'
        f'  <Choices name="{_CHOICE}" toName="{_VIDEO}" choice="single" showInline="true">\n{choices}\n  </Choices>\n</View>\n'
    )


def fiftyone_samples(rows: Sequence[Prediction], examples: Mapping[str, Example], system: str, mode: Mode) -> dict[str, Any]:
    """{"samples": [...]}, one for each row in their order, with `ground_truth` and `prediction`; FiftyOne opens local files only.

    Raises:
        DataError: a row whose video is not in `examples`.
    """
    samples = []
    for row in rows:
        example = _example(row, examples)
        said = answer(row, mode)
        tags = [
            name for name, holds in ((example.split, True), ("wrong", is_wrong(row, mode)), ("no answer", said is None)) if name and holds
        ]
        sample: dict[str, Any] = {"filepath": example.uri, "tags": tags, "metadata": None, "_media_type": "video"}
        sample |= {"rbft_id": row.id, "system": system, "category": example.category, "error_code": row.error_code}
        sample |= {"start_s": example.start_s, "end_s": example.end_s}
        sample |= {"ground_truth": _classification(row.label, None), "prediction": _classification(said, confidence(row, mode))}
        samples.append(sample)
    return {"samples": samples}


def _classification(label: str | None, share: float | None) -> dict[str, Any] | None:
    return None if label is None else {"_cls": "Classification", "tags": [], "label": label, "confidence": share, "logits": None}


def _example(row: Prediction, examples: Mapping[str, Example]) -> Example:
    if row.id not in examples:
        raise DataError(f"prediction {row.id}: is of no video of the manifest; give the one that the predictions were made with")
    return examples[row.id]


def _url(example: Example, prefix: tuple[str, str] | None) -> str:
    if prefix is None:
        return example.uri
    if not example.uri.startswith(prefix[0]):
        raise DataError(
            f"{example.uri}: does not begin with {prefix[0]!r}, which is to be replaced; give the folder that all videos lie in"
        )
    return prefix[1] + example.uri.removeprefix(prefix[0])
