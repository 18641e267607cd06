"""API models as systems of a run's evaluation: what determines their predictions, the asking, and what it took."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict

from markupsafe import Markup

from ray_jobs.progress import Progress, say
from ray_jobs.run import Run, video_key
from rbft import artifacts, rows, storage
from rbft.baselines.answers import answer_schema, usage, usage_line
from rbft.baselines.api_evaluation import api_video_spec, ask_about_videos
from rbft.config import APIModelConfig
from rbft.engines.openai import read_key
from rbft.evaluation.report_data import ReportSection
from rbft.records import Example


def require_keys(run: Run) -> None:
    """Raise `ConfigError` if a key is not set: before hours of training, not after them."""
    for model in run.config.evaluation.api_models:
        folder = run.artifact(f"evaluation/{model.name}")
        if folder is None or not artifacts.is_complete(folder):
            read_key(model)


def fingerprint(run: Run, model: APIModelConfig, examples: Sequence[Example]) -> str:
    """Of the predictions of `model` about `examples`."""
    return artifacts.fingerprint(
        {
            "kind": "predictions",
            "model": model.model_dump(mode="json", include={"url", "model", "frames", "extra_body", "top_logprobs"}),
            "question": run.config.task.question,
            "labels": run.config.task.labels,
            "max_new_tokens": model.max_new_tokens or run.config.evaluation.max_new_tokens,
            "video": asdict(api_video_spec(run.config, model)),
            "videos": [[video_key(example), example.label] for example in examples],
        }
    )


def ask(run: Run, model: APIModelConfig, folder: str, pending: Sequence[Example]) -> None:
    """Predictions about `pending` as parts of `folder`, and beside them usage.json: tokens and costs of all answers there."""
    if pending:
        say(
            f"evaluate {model.name}: asking {model.model} at {model.url} about {len(pending)} clips; its answers are kept in "
            f"{run.config.api_cache}"
        )
        progress = Progress(f"evaluate {model.name}", "clips", len(pending))
        asyncio.run(ask_about_videos(run.config, model, pending, folder, progress.add))
    found = usage(model, rows.read_parts(f"{folder}/answers", answer_schema()))
    storage.write_json(f"{folder}/usage.json", found)
    say(f"evaluate {usage_line(model.name, found)}")


def report_section(run: Run) -> ReportSection:
    """What the run's API models took, a line each. All of them must have been asked."""
    cells = []
    for model in run.config.evaluation.api_models:
        found = storage.read_json(f"{run.artifact(f'evaluation/{model.name}')}/usage.json")
        cost = "no prices given" if found["cost_usd"] is None else f"{found['cost_usd']:.2f} USD"
        errors = ", ".join(f"{code}: {count}" for code, count in found["errors"].items()) or "none"
        tokens = (f"{found['num_input_tokens']:,}", f"{found['num_output_tokens']:,}")
        asked_of = f"{', '.join(found['served_models']) or model.model}, {model.url}"
        days = " to ".join(dict.fromkeys(found["answered"]))
        cells.append((model.name, asked_of, days, found["num_videos"], found["num_refusals"], errors, *tokens, cost))
    head = ("", "asked of", "on", "videos", "refusals", "errors", "input tokens", "output tokens", "cost")
    text = Markup(
        "<p>They saw the same frames and question as every other system. A refusal counts as wrong, as does an error. The costs are those "
        "of all answers, of those that an earlier run paid for too. The files of counts are under "
        '<a href="#sources">Sources</a>.</p>'
    )
    lines = [_line("th", head), *(_line("td", line) for line in cells)]
    return ReportSection("API models", text + Markup("<table>") + Markup("").join(lines) + Markup("</table>"))


def _line(cell: str, texts: Sequence[object]) -> Markup:
    return Markup("<tr>{}</tr>").format(Markup("").join(Markup(f"<{cell}>{{}}</{cell}>").format(text) for text in texts))
