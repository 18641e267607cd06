"""The fine-tuning stages on Ray Train. `python ray_jobs/train.py --config …`

All stages (`ray_jobs.stages`) that are not finished yet run in one TorchTrainer, one after the other in the same workers.
"""

from __future__ import annotations

import json
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray_jobs.command import main
from ray_jobs.progress import SAY_EVERY_S, say
from ray_jobs.ray_runtime import ensure_ray, reason
from ray_jobs.run import Run
from ray_jobs.stages import PlannedStage, plan_stages
from rbft import artifacts, storage
from rbft.config import TrainingConfig
from rbft.errors import JobError, TrainingError, TrainingStopped
from rbft.evaluation.tables import duration, percent

MAX_FAILURES = 2
"""Worker deaths a job survives by itself; after that it fails and can be submitted again. Nodes that are taken away after a notice, and
workers that stopped in good order, do not count."""

MUCH_WAITING = 0.1
"""Share of the time spent waiting for data from which on the driver says so."""


def train(runs: Sequence[Run]) -> None:
    """Every stage of the runs' systems finished, each with its `final` model folder. Raises `JobError` if workers fail for good.

    The runs must ask for the same workers: all their stages run in them, one after the other.
    """
    stages = [planned for run in runs for planned in plan_stages(run)]
    # A stage that two runs share is trained once, too.
    stages = list({planned.spec.folder: planned for planned in reversed(stages)}.values())[::-1]
    pending = [planned for planned in stages if not artifacts.is_complete(f"{planned.spec.folder}/final", planned.spec.fingerprint)]
    for planned in stages:
        if planned not in pending:
            say(f"train {planned.spec.name}: is there already ({planned.spec.folder}/final)")
    if not pending:
        return
    names = [planned.spec.name for planned in pending]
    some = ", ".join(names) if len(names) < 7 else f"{len(names)} stages, {names[0]} to {names[-1]}"
    say(f"train: starting {runs[0].config.training.num_workers} DeepSpeed workers for {some}")
    with _following(pending):
        _fit(runs[0], pending)


def _fit(run: Run, stages: list[PlannedStage]) -> None:
    """Run the stages in Ray Train workers, as often as these stop for another reason than a wish of whoever started this job."""
    import ray.train

    from ray_jobs.stopping import DriverStop

    ensure_ray()
    name = artifacts.fingerprint([planned.spec.fingerprint for planned in stages])
    ray_folder = storage.local_path(f"{run.layout.root}/train/.ray")
    stop_file = ray_folder / f"{name}-{uuid.uuid4().hex[:8]}.stop"  # of this job alone: workers of one before may not have ended yet
    try:
        while True:
            with DriverStop(stop_file) as stop:
                ended: TrainingError | None = stop.call(_trainer(run.config.training, stages, name, ray_folder, stop_file).fit).return_value
            if ended is not None and not isinstance(ended, TrainingStopped):
                raise JobError(f"training ended: {ended}")
            if ended is not None:
                say(f"train {ended}")
            if stop.signal is signal.SIGINT:
                raise KeyboardInterrupt
            if stop.signal is not None:
                raise ended or JobError(f"{stop.signal.name} came when training had just finished; submit the job again to go on")
            if ended is None:
                return
    except (ray.train.v2.api.exceptions.TrainingFailedError, ray.exceptions.RayError) as error:
        raise JobError(f"training stopped: {reason(error)}; finished steps are kept, submit the job again to go on") from error


def _trainer(training: TrainingConfig, stages: list[PlannedStage], name: str, ray_folder: Path, stop_file: Path) -> Any:
    import ray.train
    from ray.train.torch import TorchTrainer

    from ray_jobs.elastic import LOOK_EVERY_S, ElasticTrainer
    from ray_jobs.stopping import StoppableTorchConfig

    uses_gpu, counts = training.num_gpus > 0, training.worker_counts
    is_elastic = training.min_workers is not None
    settings: dict[str, Any] = {
        "train_loop_config": {"stages": [(planned.spec, planned.items) for planned in stages], "stop_file": stop_file},
        "torch_config": StoppableTorchConfig(backend="nccl" if uses_gpu else "gloo"),
        "scaling_config": ray.train.ScalingConfig(
            num_workers=(counts[0], counts[-1]) if is_elastic else training.num_workers,
            elastic_resize_monitor_interval_s=LOOK_EVERY_S,
            use_gpu=uses_gpu,
            resources_per_worker={"CPU": training.num_cpus, **({"GPU": training.num_gpus} if uses_gpu else {})},
        ),
        "run_config": ray.train.RunConfig(
            name=name,
            storage_path=str(ray_folder),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
        ),
    }
    return ElasticTrainer(_work, counts=counts, stop_file=stop_file, **settings) if is_elastic else TorchTrainer(_work, **settings)


def _work(config: dict[str, Any]) -> TrainingError | None:
    """What every Ray Train worker runs; why it ended before the last stage was finished. Raised, Ray would try it again, in vain."""
    from ray_jobs.stopping import WorkerControls
    from rbft.training.loop import run_stage

    controls = WorkerControls(config["stop_file"])
    for spec, items in config["stages"]:
        if not artifacts.is_complete(f"{spec.folder}/final", spec.fingerprint):
            try:
                run_stage(spec, items, controls)
            except TrainingError as ended:
                return ended
    return None


@contextmanager
def _following(stages: list[PlannedStage]) -> Iterator[None]:
    """Say how far training is while the block runs, from the stages' own logs: they are on the disk that workers and driver share."""
    stop = threading.Event()
    thread = threading.Thread(target=follow, args=(stages, stop), daemon=True, name="rbft-follow")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def follow(stages: list[PlannedStage], stop: threading.Event) -> None:
    """Say how far each of `stages` is, one after the other, until the last has ended or `stop` is set."""
    several = len({planned.run.label for planned in stages}) > 1
    for planned in stages:
        log = Path(planned.spec.folder) / "log.jsonl"
        name = f"{planned.run.label} {planned.spec.name}" if several else planned.spec.name
        said_s, said_step = 0.0, 0
        while True:
            is_last_look = stop.is_set()
            line = _last_line(log)
            if line is not None and line["step"] != said_step:
                is_end = line["step"] >= line["num_steps"] or "ended_early" in line
                if is_end or time.monotonic() - said_s > SAY_EVERY_S:
                    said_s, said_step = time.monotonic(), line["step"]
                    left = "" if is_end else f", {duration(line['eta_s'])} left"
                    say(f"train {name}: step {line['step']}/{line['num_steps']}, loss {line['loss']:.3f}, {_pace(line)}{left}")
                if is_end:
                    key = planned.spec.name if planned.run.label == planned.run.config.name else name
                    planned.run.note("train_s", planned.run.fact("train_s", {}) | {key: round(line["elapsed_s"], 2)})
                    break
            if is_last_look:
                break
            stop.wait(0.5)


def _pace(line: dict[str, Any]) -> str:
    """How fast, and what of it is worth a word: MFU where it is known, waiting for data where that is much."""
    said = f"{line['samples_per_s']:.1f} samples/s"
    if "mfu" in line:
        said += f", MFU {percent(line['mfu'])}"
    if line["data_wait_share"] > MUCH_WAITING:
        said += f", {percent(line['data_wait_share'])} of it waiting for data"
    return said


def _last_line(path: Path) -> dict[str, Any] | None:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return None
    whole = [line for line in lines[:-1] if line]  # The part after the last newline is a line being written.
    return dict(json.loads(whole[-1])) if whole else None


def job(run: Run) -> None:
    with run.timed("train"):
        train(run.all_seeds())


if __name__ == "__main__":
    main(job, __doc__)
