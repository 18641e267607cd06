"""Rationales for the training videos. `python ray_jobs/generate.py --config …`

Stage 0 of RB-FT (paper 3, "Rationale Generation"): the base model writes about every training video; labels are not in the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_jobs.command import main
from ray_jobs.inference import run_inference
from ray_jobs.progress import Progress, say
from ray_jobs.run import Run
from ray_jobs.work import EngineName, Work
from rbft import artifacts, rows, storage
from rbft.errors import JobError
from rbft.evaluation.tables import percent
from rbft.rationales.quality import judge, write_quality
from rbft.rationales.table import rationales_from_table
from rbft.records import Rationale, rationale_schema


def generate(runs: Sequence[Run], also: Sequence[Work] = ()) -> None:
    """Every training video's rationale, or its error row, in a complete folder a run. `also` is other work for the base model's engine.

    All of it is done by the same actors, as starting an engine takes longer than much of the work; so the runs must have the same model
    and teacher.
    """
    work = [item for run in runs if (item := _rationale_work(run)) is not None]
    by_engine: dict[EngineName, list[Work]] = {"openai": work, "vllm": list(also)} if _asks_server(runs[0]) else {"vllm": [*work, *also]}
    for engine, items in by_engine.items():
        if any(item.examples for item in items):
            runs[0].note_start("generate", _infer(runs[0], engine, items))
    for run in runs:
        _finish(run)


def distinct_rationales(runs: Sequence[Run]) -> list[Run]:
    """Those of `runs` that need rationales, one for each set of them: seeds share theirs where nothing is drawn."""
    needing = [run for run in runs if run.config.evaluation.needs_rationales]
    by_folder = {run.layout.rationales(run.rationale_fingerprint()): run for run in reversed(needing)}
    return list(by_folder.values())[::-1]


def _rationale_work(run: Run) -> Work | None:
    """What is still to be written of the run's rationales; None where they are complete."""
    fingerprint = run.rationale_fingerprint()
    folder = run.layout.rationales(fingerprint)
    cohort = run.cohort()
    run.record_artifact("rationales", folder)
    if run.retry_errors and (num_errors := rows.reopen(folder, rationale_schema())):
        say(f"generate: {num_errors} videos with errors are tried again ({folder})")
    if artifacts.is_complete(folder, fingerprint):
        say(f"generate: {len(cohort)} rationales are there already ({folder})")
        return None
    done = rows.done_ids(folder, rationale_schema(), errors_too=not run.retry_errors)
    if done:
        say(f"generate: going on, {len(done)} of {len(cohort)} rationales are there ({folder})")
    pending = [example for example in cohort if example.id not in done]
    provenance = {"model": run.writer[0], "fingerprint": fingerprint}
    model = run.config.teacher.model or run.config.model
    return Work("rationale", folder, pending, model, run.config.task, provenance, run.config.gates)


def _asks_server(run: Run) -> bool:
    return run.config.teacher.server is not None


def _finish(run: Run) -> None:
    """Join the parts and mark them complete; raise `JobError` if too many are error rows."""
    fingerprint = run.rationale_fingerprint()
    folder = run.layout.rationales(fingerprint)
    cohort = run.cohort()
    if not artifacts.is_complete(folder, fingerprint):
        lineage = {"model": run.writer, "prompt": run.config.task.rationale_prompt, "versions": run.fact("versions")}
        rows.finish(folder, "rationales", rationale_schema(), [example.id for example in cohort], fingerprint, lineage)
        storage.delete_file(f"{folder}/quality.json")  # of before errors were tried again
    if not storage.exists(f"{folder}/quality.json"):
        labels = {example.id: example.label for example in cohort}
        verdicts = judge(read_rationales(run), run.config.task, labels)
        found = write_quality(folder, verdicts, run.config.task, f"{run.config.name}: rationales")
        say(f"generate: {percent(found['pass_rates']['all'])} of the rationales pass every gate ({folder}/quality.html)")
    # Also for a folder that was complete already: a job that failed for its bad share must not pass when it is submitted again.
    columns = ("id", "error_code", "error_message")
    tables = rows.iterate_finished(folder, "rationales", rationale_schema(), columns)
    report_errors(run, "generate", [row for table in tables for row in zip(*(table[name].to_pylist() for name in columns), strict=True)])


def _infer(run: Run, engine: EngineName, work: list[Work]) -> float:
    total = sum(len(item.examples) for item in work)
    server = run.config.teacher.server if engine == "openai" else None
    asked = f"{run.config.engine.num_actors} vLLM engine(s)" if server is None else f"to ask {server.model} at {server.url}"
    say(f"generate: starting {asked} for {total} videos")
    progress = Progress("generate" if all(item.kind == "rationale" for item in work) else "generate and zero-shot", "videos", total)
    return run_inference(run.config, engine, work, progress)


def read_rationales(run: Run) -> list[Rationale]:
    """The rows of the run's complete rationale folder; raises `ArtifactError` if it is not complete."""
    folder = run.layout.rationales(run.rationale_fingerprint())
    return rationales_from_table(rows.read_finished(folder, "rationales", rationale_schema()))


def report_errors(run: Run, step: str, outcomes: Sequence[tuple[str, str | None, str | None]]) -> None:
    """Print the error codes with counts and examples; raise `JobError` if the bad share passes `data.max_bad_fraction`."""
    bad = [(id_, code, message) for id_, code, message in outcomes if code is not None]
    if not bad:
        return
    by_code: dict[str, list[str]] = {}
    for id_, code, message in bad:
        by_code.setdefault(str(code), []).append(f"{id_}: {message}")
    say(f"{step}: {len(bad)} of {len(outcomes)} videos could not be used")
    width = max(map(len, by_code))
    print(f"        {'error code':{width}}  count  the first")
    for code, examples in sorted(by_code.items(), key=lambda item: (-len(item[1]), item[0])):
        print(f"        {code:{width}}  {len(examples):5d}  {examples[0]}", flush=True)
    allowed = run.config.data.max_bad_fraction
    if len(bad) > allowed * len(outcomes):
        raise JobError(
            f"{step}: {len(bad)} of {len(outcomes)} videos could not be used, more than data.max_bad_fraction {allowed}; "
            "`rbft validate` lists them; mend them, or raise the limit"
        )


def job(run: Run) -> None:
    with run.timed("generate"):
        generate(distinct_rationales(run.all_seeds()))


if __name__ == "__main__":
    main(job, __doc__)
