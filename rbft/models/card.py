"""The model card: README.md of a finished model folder, in Hugging Face's form, made of the facts that `rbft.json` and its lineage hold.

Nothing is in it that is not known: a line about what was not measured says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rbft.records import VideoSpec
from rbft.task import Task

MODEL_CARD = "README.md"
"""Where hubs look for it."""
_STAGES = {
    "rationale": "stage 1 of rationale-bootstrapped fine-tuning (prompt to rationale): an intermediate model, which explains",
    "classify": "a video classifier (question to label)",
}


def model_card(task: Task, spec: VideoSpec, lineage: Mapping[str, Any], scores: Mapping[str, float] | None = None) -> str:
    """README.md of a model of `task`. `scores` are those of the best validation, None where there was none or they are not known."""
    title = f"{lineage.get('run', task.name)}: {lineage.get('system', task.name)}"
    stage = str(lineage.get("stage", "classify"))
    parts = [
        _front_matter(task, title, scores),
        f"# {title}\n\nFine-tuned by RB-FT for the task *{task.name}*: {_STAGES.get(stage, stage)}. Labels: "
        f"{', '.join(f'`{label}`' for label in task.labels)}.",
        _use(task, spec, stage),
        _data(lineage),
        _metrics(scores, lineage),
        _table("Training", _hyperparameters(lineage)),
        _table("Lineage", _origin(lineage)),
        _LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(task: Task, title: str, scores: Mapping[str, float] | None) -> str:
    """The YAML that model hubs read. JSON is YAML: so every name and number is quoted as it has to be."""
    facts: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "video-text-to-text",
        "tags": ["video-classification", "rb-ft", task.name],
    }
    if scores is not None:
        measured = [{"type": name, "value": round(scores[name], 4)} for name in ("macro_f1", "accuracy")]
        about = {"type": "video-classification"}
        data = {"name": task.name, "type": task.name, "split": "validation"}
        facts["model-index"] = [{"name": title, "results": [{"task": about, "dataset": data, "metrics": measured}]}]
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in facts.items()]
    return "\n".join(["---", *lines, "---"])


def _use(task: Task, spec: VideoSpec, stage: str) -> str:
    asked = task.question if stage == "classify" else task.rationale_prompt
    quoted = "\n".join(f"> {line}" for line in asked.splitlines())
    return f"""## Use

The folder `final`, and what `rbft export` writes, is whole: weights, processor, and `rbft.json` with the labels, prompts and video
settings. A folder `adapter` holds LoRA's weights alone, in PEFT's format, which `rbft export` merges with their base. The model is
asked, about up to {spec.max_frames} frames at {spec.fps:g} frames a second of at most {spec.max_pixels:,} pixels each:

{quoted}

```python
from rbft.models.load import load_model, read_card

model = load_model(".", "bfloat16")   # transformers, with the reference's positions after a video
task, video, lineage = read_card(".")
```

vLLM loads the folder as it is. `rbft serve` answers uploads over HTTP with a label and its probability."""


def _data(lineage: Mapping[str, Any]) -> str:
    counts: Mapping[str, int] = lineage.get("classes", {})
    if not counts:
        return "## Data\n\nClass counts were not recorded."
    rows = "\n".join(f"| {label} | {count:,} |" for label, count in counts.items())
    return f"""## Data

{lineage.get("num_items", sum(counts.values())):,} training samples; the fingerprint of their videos is `{lineage.get("videos")}`, that of
the whole split `{lineage.get("split")}`.

| class | training samples |
| --- | --- |
{rows}"""


def _metrics(scores: Mapping[str, float] | None, lineage: Mapping[str, Any]) -> str:
    if scores is None and "validation" in lineage:
        return "## Metrics\n\nThose of its validation are not in this folder. The run's `report.html` has those of the test split."
    if scores is None:
        return (
            "## Metrics\n\nNone were measured while it trained: `training.validation` was off. The run's `report.html` has those of the "
            "test split."
        )
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in scores.items())
    num_videos = lineage.get("validation", {}).get("num_videos", "the")
    return f"""## Metrics

On {num_videos} videos of the validation split, by label likelihood. This model was chosen among those of one training by them, so they
are a little too good; the run's `report.html` has the test split's.

| metric | value |
| --- | --- |
{rows}"""


def _hyperparameters(lineage: Mapping[str, Any]) -> list[tuple[str, Any]]:
    optimiser: Mapping[str, Any] = lineage.get("optimiser", {})
    known = [(name, lineage.get(name)) for name in ("epochs", "seed", "class_balance", "num_replay")]
    return [(name, value) for name, value in [*known, *optimiser.items()] if value is not None]


def _origin(lineage: Mapping[str, Any]) -> list[tuple[str, Any]]:
    names = ("base_model", "base", "run", "system", "stage", "fingerprint", "answers")
    versions = " ".join(f"{name} {version}" for name, version in (lineage.get("versions") or {}).items())
    return [(name, lineage[name]) for name in names if lineage.get(name) is not None] + ([("versions", versions)] if versions else [])


def _table(title: str, rows: Sequence[tuple[str, Any]]) -> str:
    if not rows:
        return f"## {title}\n\nNot recorded."
    return "\n".join([f"## {title}", "", "| what | value |", "| --- | --- |", *(f"| {name} | `{_cell(value)}` |" for name, value in rows)])


def _cell(value: Any) -> str:
    """One line, in which no bar ends the cell."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")


_LIMITS = """## Intended use and limits

For sorting videos like those it was trained on, with a person to decide where a mistake would cost something. It knows the classes above
and no others, and answers one of them about any video. Its probabilities are the shares of the labels' likelihoods, and calibrated only
where `rbft.json` has a calibration. What it writes in explanation is text that resembles its training data, and no proof of what it saw.
Other cameras, places, lengths and resolutions than the training data's have to be tested first. The licence and terms of the base model
and of the videos hold for it too."""
