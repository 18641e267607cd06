"""Whether a model can still explain after stage 2 (readings, 27): the same held-out videos, asked of M_inter and of M*, through the gates.

Beyond the paper's comparison, and off unless `evaluation.rationale_check` says how many videos, or `training.replay_share` is on. What was
written is kept by model, prompt and sampling, so that a second submission asks for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from markupsafe import Markup

from ray_jobs.evaluate import held_out
from ray_jobs.inference import run_inference
from ray_jobs.progress import Progress, say
from ray_jobs.run import Run
from ray_jobs.work import Work
from rbft import artifacts, rows, storage
from rbft.config import GatesConfig, ModelConfig
from rbft.evaluation.report_data import ReportSection
from rbft.evaluation.tables import percent, system_title
from rbft.layout import Stage
from rbft.rationales.gates import TEXT_GATES, pass_rates
from rbft.rationales.quality import judge
from rbft.rationales.table import rationales_from_table
from rbft.records import Example, rationale_schema
from rbft.seeds import derive_seed
from rbft.training.stage import PROBE_FILE

_MOMENTS: dict[str, Stage] = {"before": "rationale", "after": "classify"}


def check_rationales(run: Run) -> dict[str, dict[str, Any]]:
    """System with a stage 1 -> what `summarise` says of it; empty where the check is off. Asks for what has not been written yet."""
    count = run.config.num_rationales_checked
    if not count:
        return {}
    examples = sorted(held_out(run), key=lambda example: derive_seed(run.config.seed, "rationale check", example.id))[:count]
    models = {
        (system, moment): model
        for system in run.config.evaluation.systems
        for moment, stage in _MOMENTS.items()
        if run.artifact(f"train/{system}/rationale") and (model := run.trained_model(system, stage)) is not None
    }
    folders = {key: _folder(run, *key) for key in models}
    _write(run, examples, {folders[key]: models[key] for key in models})
    return {system: summarise(run, system, examples, folders) for system in dict.fromkeys(system for system, _ in models)}


def summarise(run: Run, system: str, examples: list[Example], folders: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """`num_videos`; `before` and `after` stage 2 the share of its rationales that pass each gate and all; `rationale_loss` before and
    after, in nats a token, where `training.rationale_probe` had it measured."""
    labels = {example.id: example.label for example in examples}
    found: dict[str, Any] = {"num_videos": len(examples)}
    for moment in _MOMENTS:
        written = rationales_from_table(rows.read_parts(folders[system, moment], rationale_schema()))
        verdicts = judge([row for row in written if row.id in labels], run.config.task, labels, TEXT_GATES)
        found[moment] = pass_rates([verdict.failed for verdict in verdicts], TEXT_GATES)
    probe = f"{run.artifact(f'train/{system}/classify')}/{PROBE_FILE}"
    if storage.exists(probe):
        found["rationale_loss"] = storage.read_json(probe)
    return found


def report_section(found: Mapping[str, Mapping[str, Any]]) -> ReportSection:
    """The check as a table of the report: a line a system, before and after stage 2."""
    lines = [
        Markup("<tr><th>{}</th><td>{}</td><td>{}</td><td>{}</td></tr>").format(
            system_title(system), percent(each["before"]["all"]), percent(each["after"]["all"]), _losses(each.get("rationale_loss"))
        )
        for system, each in found.items()
    ]
    number = next(iter(found.values()))["num_videos"]
    text = Markup(
        "<p>{} held-out videos, explained by the model after stage 1 and again after stage 2: the share of rationales that pass every gate "
        "one text decides, and the loss of training rationales (nats a token) where it was measured.</p>"
    ).format(number)
    head = Markup("<tr><th>system</th><th>after stage 1</th><th>after stage 2</th><th>loss, before and after stage 2</th></tr>")
    return ReportSection("Can it still explain?", text + Markup("<table>") + head + Markup("").join(lines) + Markup("</table>"))


def _losses(probe: Mapping[str, float] | None) -> str:
    return "not measured" if probe is None else f"{probe.get('before', float('nan')):.3f} to {probe['after']:.3f}"


def _write(run: Run, examples: list[Example], models: Mapping[str, ModelConfig]) -> None:
    work = []
    for folder, model in models.items():
        done = rows.done_ids(folder, rationale_schema())
        if pending := [example for example in examples if example.id not in done]:
            work.append(Work("rationale", folder, pending, model, run.config.task, {"check": "after training"}, GatesConfig()))
    if not work:
        return
    total, engine = sum(len(item.examples) for item in work), run.config.evaluation.engine
    say(f"rationale check: asking for {total} rationales with {engine}")
    progress = Progress("rationale check", "videos", total)
    with run.timed("rationale check"):
        for group in [[item] for item in work] if engine == "vllm" else [work]:
            run_inference(run.config, engine, group, progress)


def _folder(run: Run, system: str, moment: str) -> str:
    fingerprint = artifacts.fingerprint(
        {
            "kind": "rationale check",
            "model": str(run.artifact(f"train/{system}/{_MOMENTS[moment]}")).rpartition("/")[2],
            "dtype": run.config.model.dtype,
            "engine": run.config.evaluation.engine,
            "prompt": run.config.task.rationale_prompt,
            "sampling": run.config.generation.model_dump(mode="json"),
            "video": asdict(run.config.video.spec()),
        }
    )
    return run.layout.rationale_check(system, fingerprint)
