"""The fine-tuning stages on Ray Train. `python ray_jobs/train.py --config …`

All stages (`ray_jobs.stages`) that are not finished yet run in one TorchTrainer, one after the other in the same workers; before them the
video classifiers of `evaluation.video_classifiers`, each in its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray_jobs.command import main
from ray_jobs.progress import say
from ray_jobs.run import Run
from ray_jobs.stages import plan_stages
from ray_jobs.training_workers import following, run_workers
from ray_jobs.video_classifiers import train_classifiers
from rbft import artifacts
from rbft.errors import TrainingError


def train(runs: Sequence[Run]) -> None:
    """Every stage of the runs' systems finished, each with its `final` model folder. Raises `JobError` if workers fail for good.

    The runs must ask for the same workers: all their stages run in them, one after the other.
    """
    stages = [planned for run in runs for planned in plan_stages(run)]
    # A stage that two runs share is trained once, too.
    stages = list({planned.spec.folder: planned for planned in reversed(stages)}.values())[::-1]
    pending = [planned for planned in stages if not artifacts.is_complete(f"{planned.spec.home}/final", planned.spec.fingerprint)]
    for planned in stages:
        if planned not in pending:
            say(f"train {planned.spec.name}: is there already ({planned.spec.home}/final)")
    if not pending:
        return
    names = [planned.spec.name for planned in pending]
    some = ", ".join(names) if len(names) < 7 else f"{len(names)} stages, {names[0]} to {names[-1]}"
    say(f"train: starting {runs[0].config.training.num_workers} DeepSpeed workers for {some}")
    settings = {"stages": [(planned.spec, planned.items) for planned in pending]}
    with following(pending):
        run_workers(runs[0], runs[0].config.training, _work, settings, [planned.spec.fingerprint for planned in pending])


def _work(config: dict[str, Any]) -> TrainingError | None:
    """What every worker runs."""
    from ray_jobs.stopping import WorkerControls
    from rbft.training.loop import run_stage

    controls = WorkerControls(config["stop_file"])
    for spec, items in config["stages"]:
        if not artifacts.is_complete(f"{spec.home}/final", spec.fingerprint):
            try:
                run_stage(spec, items, controls)
            except TrainingError as ended:
                return ended
    return None


def job(run: Run) -> None:
    with run.timed("train"):
        runs = run.all_seeds()
        train_classifiers(runs)
        train(runs)


if __name__ == "__main__":
    main(job, __doc__)
