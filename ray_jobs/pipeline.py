"""The whole of RB-FT: rationales, both stages, Direct-SFT beside it, evaluation, report. `python ray_jobs/pipeline.py --config …`

Submitting it again skips what is complete and goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray_jobs import api_models
from ray_jobs.command import main
from ray_jobs.evaluate import (
    evaluate,
    explain,
    finish_predictions,
    held_out,
    prediction_work,
    read_calibrations,
    read_measures,
    read_predictions,
)
from ray_jobs.generate import distinct_rationales, generate, read_rationales
from ray_jobs.looking import attention_maps
from ray_jobs.memory import PeakMemory
from ray_jobs.progress import say
from ray_jobs.provenance import inside, read_sources
from ray_jobs.rationale_check import check_rationales, report_section
from ray_jobs.run import Run
from ray_jobs.seeds import seeds_section, seeds_summary, study_seeds
from ray_jobs.train import train
from ray_jobs.video_classifiers import train_classifiers
from rbft import artifacts, storage
from rbft.errors import RBFTError
from rbft.evaluation.cells import choose_videos, make_cells
from rbft.evaluation.curves import read_curves
from rbft.evaluation.imported import read_imported
from rbft.evaluation.looking.heatmaps import overlay
from rbft.evaluation.report import write_report
from rbft.evaluation.report_data import CalibratedResult, ReportData, ReportSection, main_system, report_data
from rbft.evaluation.run_clips import decode_clips
from rbft.evaluation.tables import difference_sentence, summary_json, table_text
from rbft.evaluation.thumbnails import Thumbnails, thumbnails
from rbft.records import Clip, Example
from rbft.video.durations import clip_durations


def job(run: Run) -> None:
    with PeakMemory() as memory:
        with run.timed("manifest"):
            api_models.require_keys(run)
            say(f"run {run.config.name}: {len(run.cohort())} training and {len(held_out(run))} {run.config.evaluation.split} videos")
        runs = run.all_seeds()
        run_steps(runs)
    run.note("peak_rss_bytes", max(memory.peak_bytes, run.fact("peak_rss_bytes", 0)))
    checked = check_rationales(run)
    with run.timed("report"):
        study = study_seeds(runs)
        sections = [*([] if study is None else [seeds_section(study, runs)]), *([report_section(checked)] if checked else [])]
        if run.config.evaluation.api_models:
            sections.append(api_models.report_section(run))
        report = make_report(run, sections)
    summary = make_summary(run, report) | ({"rationale_check": checked} if checked else {})
    if study is not None:
        summary["seeds"] = seeds_summary(study, runs)
    storage.write_json(run.layout.summary, summary)
    print("\n" + results_table(report))
    for comparison in report.comparisons:
        print(difference_sentence(comparison))
    print(f"\nreport:  {run.layout.report}\nsummary: {run.layout.summary}")


def run_steps(runs: Sequence[Run]) -> None:
    """Generation, training and evaluation, in order; Ray is joined or started by the first that has anything to do.

    Several runs that differ in their data and task only share the engines and workers, whose start is most of a small run's time. The
    first run's record gets the times.
    """
    main = runs[0]
    done: set[str] = set()
    writing = distinct_rationales(runs)
    if writing:
        # Zero-shot asks the same model: where vLLM scores, the engine that writes the rationales does both.
        asking = [run for run in runs if "zero-shot" in run.config.evaluation.systems] if main.config.evaluation.engine == "vllm" else []
        if asking:
            done.add("zero-shot")
        with main.timed("generate"):
            generate(writing, [prediction_work(run, "zero-shot", run.config.model, "vllm") for run in asking])
            for run in asking:
                finish_predictions(run, "zero-shot", "vllm")
    if main.config.evaluation.video_classifiers or any(system != "zero-shot" for run in runs for system in run.config.evaluation.systems):
        with main.timed("train"):
            train_classifiers(runs)
            train(runs)
    with main.timed("evaluate"):
        evaluate(runs, without=done)


def make_report(run: Run, sections: Sequence[ReportSection] = ()) -> ReportData:
    """Write report.html, which begins with `sections`; its data."""
    config = run.config
    # Those made elsewhere first, as in the paper's tables: without an RB-FT, the last one stands for the run.
    predictions = read_imported(run.fact("imported", {}), held_out(run))
    predictions |= {system: read_predictions(run, system) for system in config.evaluation.all_systems}
    rationales = read_rationales(run) if config.evaluation.needs_rationales else []
    cells = make_cells(predictions, config.task.labels)
    main = main_system(predictions)
    by_id = {example.id: example for example in held_out(run)}
    shown = [by_id[id_] for id_ in choose_videos(cells, main, config.evaluation.num_report_samples)]
    workers = config.engine.decode_workers
    clips = decode_clips(shown, config.video, workers, thumbnails)
    is_ours = main in config.evaluation.systems
    heatmaps, notes = _heatmaps(run, main, shown, clips) if is_ours and config.evaluation.report_attention else ({}, ())
    report = report_data(
        title=f"RB-FT: {config.data.title or config.name}",
        task=config.task,
        examples=run.examples,
        predictions=predictions,
        rationales=rationales,
        curves=[replace(curve, file=inside(run, curve.file)) for curve in read_curves(run.stage_folders())],
        shown_ids=[example.id for example in shown],
        clips={id_: small.clip for id_, small in clips.items()},
        explanations=explain(run, main, shown) if is_ours else {},
        heatmaps=heatmaps,
        sources=read_sources(run, predictions),
        wall_s=run.fact("wall_s", {}),
        versions=run.fact("versions", {}),
        provenance=_provenance(run),
        measures={system: read_measures(run, system, predictions[system]) for system in config.evaluation.all_systems},
        calibrated={
            system: CalibratedResult.of(fitted, read_measures(run, system, predictions[system], fitted))
            for system, fitted in read_calibrations(run).items()
        },
        durations_s=clip_durations(
            list(by_id.values()), run.layout.durations, workers, config.video.timeout_s, config.video.memory_limit_bytes
        ),
        notes=notes,
        seed=config.seed,
    )
    report = replace(report, sections=tuple(sections))
    write_report(report, run.layout.report)
    return report


def _heatmaps(run: Run, system: str, shown: list[Example], clips: Mapping[str, Thumbnails]) -> tuple[dict[str, Clip], tuple[str, ...]]:
    """Id -> clip under its heatmap; and why there are none, where they cannot be read: a report without them is still a report."""
    try:
        maps = attention_maps(run, system, [example for example in shown if example.id in clips])
    except RBFTError as error:
        say(f"report: no attention: {error}")
        return {}, (f"No attention is shown: {error}",)
    return {id_: overlay(clips[id_].clip, attention, clips[id_].num_frames) for id_, attention in maps.items()}, ()


def _provenance(run: Run) -> dict[str, str]:
    manifest = artifacts.bytes_sha256(storage.read_bytes(run.layout.manifest))
    known = {"folder": run.layout.root, "command": run.fact("command"), "commit": run.fact("commit"), "seed": run.config.seed}
    rationales = run.artifact("rationales") if run.config.evaluation.needs_rationales else None
    known |= {"configuration": inside(run, run.layout.config), "manifest": f"{inside(run, run.layout.manifest)}, SHA-256 {manifest}"}
    known |= {"rationales": rationales and inside(run, rationales)}
    return {name: str(value) for name, value in known.items() if value is not None}


def results_table(report: ReportData) -> str:
    """The results for the terminal."""
    return table_text(
        {system.name: system.likelihood for system in report.systems if system.likelihood},
        {system.name: system.generate for system in report.systems if system.generate},
        probabilities={system.name: system.probabilities for system in report.systems if system.probabilities},
        baselines=report.baselines,
    )


def make_summary(run: Run, report: ReportData) -> dict[str, Any]:
    """What summary.json holds."""
    summary: dict[str, Any] = {
        "name": run.config.name,
        "systems": summary_json(
            {system.name: system.main for system in report.systems},
            {system.name: system.probabilities for system in report.systems if system.probabilities},
        ),
        # Of those that tell no probabilities.
        "by_generated_text": [system.name for system in report.systems if system.likelihood is None],
        "baselines": summary_json(report.baselines),
        "mcnemar_p": {f"{each.system} - {each.baseline}": each.mcnemar_p for each in report.comparisons},
        "wall_s": run.fact("wall_s", {}),
        "train_s": run.fact("train_s", {}),
        "peak_rss_bytes": run.fact("peak_rss_bytes"),
        "versions": run.fact("versions"),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return summary


if __name__ == "__main__":
    main(job, __doc__)
