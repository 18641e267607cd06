"""Rationales for the training videos. `python ray_jobs/generate.py --config …`

Stage 0 of RB-FT (paper 3, "Rationale Generation"): the base model writes about every training video; labels are not in the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_jobs.command import main
from ray_jobs.inference import Work, run_inference
from ray_jobs.progress import Progress, say
from ray_jobs.run import Run
from rbft import artifacts, rows
from rbft.errors import JobError
from rbft.rationales.table import rationales_from_table
from rbft.records import Rationale, rationale_schema


def generate(run: Run, also: Sequence[Work] = ()) -> None:
    """Every training video's rationale, or its error row, in a complete folder. `also` is other work for the base model's engine,
    done by the same actors, as starting an engine takes longer than much of the work."""
    fingerprint = run.rationale_fingerprint()
    folder = run.layout.rationales(fingerprint)
    cohort = run.cohort()
    run.record_artifact("rationales", folder)
    work = list(also)
    if artifacts.is_complete(folder, fingerprint):
        say(f"generate: {len(cohort)} rationales are there already ({folder})")
    else:
        done = rows.done_ids(folder, rationale_schema())
        pending = [example for example in cohort if example.id not in done]
        if done:
            say(f"generate: going on, {len(done)} of {len(cohort)} rationales are there")
        provenance = {"model": run.model_fingerprint, "fingerprint": fingerprint, "label_in_prompt": False}
        work.insert(0, Work("rationale", folder, pending, run.config.model, provenance))
    if any(item.examples for item in work):
        _infer(run, work, folder)
    if not artifacts.is_complete(folder, fingerprint):
        lineage = {"model": run.model_fingerprint, "prompt": run.config.task.rationale_prompt, "versions": run.fact("versions")}
        rows.finish(folder, "rationales", rationale_schema(), [example.id for example in cohort], fingerprint, lineage)
    # Also for a folder that was complete already: a job that failed for its bad share must not pass when it is submitted again.
    report_errors(run, "generate", [(r.id, r.error_code, r.error_message) for r in read_rationales(run)])


def _infer(run: Run, work: list[Work], folder: str) -> None:
    total = sum(len(item.examples) for item in work)
    say(f"generate: starting {run.config.engine.num_actors} vLLM engine(s) for {total} videos")
    progress = Progress("generate" if len(work) == 1 else "generate and zero-shot", "videos", total)
    counts = {"done": 0, "errors": 0}

    def on_block(_: str, num_rows: int, num_errors: int) -> None:
        counts["done"] += num_rows
        counts["errors"] += num_errors
        progress.update(counts["done"], f"{counts['errors']} errors" if counts["errors"] else "")

    run_inference(run.config, "vllm", work, on_block)


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
    for code, examples in sorted(by_code.items(), key=lambda item: -len(item[1])):
        say(f"{step}: {len(examples)} x {code}, e.g. {examples[0]}")
    allowed = run.config.data.max_bad_fraction
    if len(bad) > allowed * len(outcomes):
        raise JobError(
            f"{step}: {len(bad)} of {len(outcomes)} videos could not be used, more than data.max_bad_fraction {allowed}; "
            "`rbft validate` lists them; mend them, or raise the limit"
        )


def job(run: Run) -> None:
    with run.timed("generate"):
        generate(run)


if __name__ == "__main__":
    main(job, __doc__)
