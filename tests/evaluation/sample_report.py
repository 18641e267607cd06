"""A report with everything in it, for tests of its page and of how a browser shows that."""

from __future__ import annotations

import numpy as np

from rbft.evaluation.cells import choose_videos, make_cells
from rbft.evaluation.curves import LossCurve
from rbft.evaluation.provenance import Source
from rbft.evaluation.report_data import ReportData, report_data
from rbft.records import Clip, Example, Prediction, Rationale
from rbft.task import Dimension, Task

TASK = Task(
    name="doors",
    labels=("normal", "abnormal"),
    persona="security expert",
    dimensions=(Dimension(heading="Subjects", describe="who"),),
    question="Normal or abnormal?",
)
ATTACK = "<script>alert(1)</script>"
OTHER = {"normal": "abnormal", "abnormal": "normal"}


def sample_predictions(share_right: float, num_clips: int = 60) -> list[Prediction]:
    """By likelihood and by text alike; from half sure to wholly sure."""
    rows = []
    for i in range(num_clips):
        label = "normal" if i % 3 == 0 else "abnormal"
        predicted = label if (i * 7919 % num_clips) / num_clips < share_right else OTHER[label]
        sure = 0.5 + i / (2 * num_clips)
        rows.append(Prediction(f"clip-{i}", label, predicted, {predicted: sure, OTHER[predicted]: 1 - sure}, {}, predicted, predicted))
    return rows


def sample_clip(num_frames: int = 8, height: int = 84, width: int = 112) -> Clip:
    """From black to red."""
    frames = np.zeros((num_frames, height, width, 3), dtype=np.uint8)
    frames[..., 0] = np.linspace(0, 255, num_frames, dtype=np.uint8)[:, None, None]
    return Clip(frames, tuple(float(i) for i in range(num_frames)), 1.0, float(num_frames), 25.0, "pyav")


def sample_report() -> ReportData:
    """Three systems on 61 videos, most of them shown; every text that comes from outside holds `ATTACK`."""
    predictions = {"zero-shot": sample_predictions(0.5), "direct-sft-2": sample_predictions(0.6), "rb-ft": sample_predictions(0.9)}
    evil = f'"><img src=x onerror=alert(1)>{ATTACK}'
    for rows in predictions.values():
        rows.append(Prediction(evil, "normal", None, error_code="video_decode", error_message=f"{evil}: truncated"))
    ids = [*choose_videos(make_cells(predictions, TASK.labels), "rb-ft", 20), evil]
    ids = list(dict.fromkeys(ids))
    seen = [each for each in ids if each != evil]
    return report_data(
        title=f"Doors {ATTACK}",
        task=TASK,
        examples=[
            *(Example(row.id, "x", label=row.label, split="test", category=f"Wildlife, {ATTACK}") for row in predictions["rb-ft"]),
            Example("t", "x", label="abnormal", split="train", category="Wildlife"),
            Example("u", "x", split="train"),
        ],
        predictions=predictions,
        rationales=[Rationale("u", 0, text="x", num_tokens=40, finish_reason="stop"), Rationale("v", 0, error_code="video_empty")],
        curves=[LossCurve("rb-ft", "stage-1", tuple(range(1, 51)), (*(2 / step for step in range(1, 50)), float("nan")))],
        shown_ids=ids,
        clips={each: sample_clip() for each in seen},
        heatmaps={each: sample_clip() for each in seen[:4]},
        explanations={
            seen[0]: Rationale(seen[0], 0, text="x", sections={"Subjects": f"a man {ATTACK}"}),
            seen[1]: Rationale(seen[1], 0, text=f"no headings {ATTACK}"),
            seen[2]: Rationale(seen[2], 0, error_code="engine", error_message=ATTACK),
        },
        wall_s={f"train {ATTACK}": 61.0},
        versions={"torch": f"2.13 {ATTACK}"},
        durations_s={f"clip-{i}": 4.0 + i for i in range(20)},
        provenance={"command": f"python x.py --set a={ATTACK}"},
        sources=[
            Source(name, ((f"runs/{ATTACK}/{name}/predictions-00000.parquet", "ab12"),), "0f1e", "test", 61, {"model": ATTACK})
            for name in predictions
        ],
        notes=[f"No attention: {ATTACK}"],
    )
