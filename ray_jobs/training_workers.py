"""Workers of Ray Train for what a run trains, and what is said meanwhile: how they are started, stopped, and started again."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ray_jobs.job_metrics import TrainingFailures, TrainingMetrics
from ray_jobs.progress import SAY_EVERY_S, say
from ray_jobs.ray_runtime import ensure_ray, free_resources, reason
from ray_jobs.run import Run
from ray_jobs.waiting import Waiting, resources
from rbft import artifacts, storage
from rbft.config import TrainingConfig
from rbft.errors import ArtifactError, JobError, TrainingError, TrainingStopped
from rbft.evaluation.tables import duration, percent

MAX_FAILURES = 2
"""Worker deaths a job survives by itself; after that it fails and can be submitted again. Nodes that are taken away after a notice, and
workers that stopped in good order, do not count."""

_LOOK_EVERY_S = 0.5
_LOOK_IN_STORE_EVERY_S = 10.0
"""How often the driver looks how far training is."""

SCRATCH = "~/.cache/rbft/training"
"""Where runs in a store are trained without `training.scratch`."""

MUCH_WAITING = 0.1
"""Share of the time spent waiting for data from which on the driver says so."""


def places(run: Run, folder: str) -> dict[str, Any]:
    """`folder` and `store` of the spec of what is trained into `folder` of the run's layout. The local folder of a run in a store has the
    same name whichever job works there, and no other run has it."""
    if storage.is_local(folder):
        return {"folder": str(storage.local_path(folder)), "store": None}
    scratch = Path(run.config.training.scratch or SCRATCH).expanduser().absolute()
    name = f"{run.config.name}-{artifacts.fingerprint(run.layout.root)}"
    return {"folder": str(scratch / name / folder.removeprefix(f"{run.layout.root}/train/")), "store": folder}


class Spec(Protocol):
    """What is trained, as far as its driver must know."""

    @property
    def training(self) -> TrainingConfig: ...
    @property
    def name(self) -> str: ...
    @property
    def home(self) -> str: ...


class Planned(Protocol):
    """Something that a run trains."""

    @property
    def run(self) -> Run: ...
    @property
    def spec(self) -> Spec: ...


Work = Callable[[dict[str, Any]], TrainingError | None]
"""What every worker runs, with the settings it is given and `stop_file`; why it ended before it was finished. Raised, Ray would try it
again, in vain."""


def run_workers(run: Run, training: TrainingConfig, work: Work, settings: dict[str, Any], fingerprints: Sequence[str]) -> None:
    """Run `work` with `settings` in as many Ray Train workers as `training` says, as often as these stop for another reason than a wish of
    whoever started this job. `fingerprints` are of what is worked on. Raises `JobError` if workers fail for good."""
    import ray.train

    from ray_jobs.stopping import DriverStop, read_stop_file

    ensure_ray()
    failures = TrainingFailures(run.config.name)
    name = artifacts.fingerprint(list(fingerprints))
    ray_folder = f"{run.layout.root}/train/.ray"
    if storage.is_local(ray_folder):
        ray_folder = str(storage.local_path(ray_folder))  # absolute, as workers have another working directory
    stop_file = f"{ray_folder}/{name}-{uuid.uuid4().hex[:8]}.stop"  # of this job alone: workers of one before may not have ended yet
    try:
        while True:
            with DriverStop(stop_file) as stop:
                ended: TrainingError | None = stop.call(_trainer(training, work, settings, name, ray_folder, stop_file).fit).return_value
                was_asked = read_stop_file(stop_file) is not None
            if ended is not None and not isinstance(ended, TrainingStopped):
                failures.count(ended)
                raise JobError(f"training ended: {ended}")
            if ended is not None:
                say(f"train {ended}")
            if stop.signal is signal.SIGINT:
                raise KeyboardInterrupt
            if stop.signal is not None:
                raise ended or JobError(f"{stop.signal.name} came when training had just finished; submit the job again to go on")
            if ended is None and not was_asked:  # This is the first worker's; another may have stopped before it was finished.
                return
    except (ray.train.v2.api.exceptions.TrainingFailedError, ray.exceptions.RayError) as error:
        failures.count(error)
        raise JobError(f"training stopped: {reason(error)}; finished steps are kept, submit the job again to go on") from error


def _trainer(training: TrainingConfig, work: Work, given: dict[str, Any], name: str, ray_folder: str, stop_file: str) -> Any:
    import ray.train
    from ray.train.torch import TorchTrainer

    from ray_jobs.elastic import LOOK_EVERY_S, ElasticTrainer
    from ray_jobs.stopping import StoppableTorchConfig

    where, ray_path = storage.filesystem(ray_folder)
    uses_gpu, counts = training.num_gpus > 0, training.worker_counts
    is_elastic = training.min_workers is not None
    settings: dict[str, Any] = {
        "train_loop_config": given | {"stop_file": stop_file},
        "torch_config": StoppableTorchConfig(backend="nccl" if uses_gpu else "gloo"),
        "scaling_config": ray.train.ScalingConfig(
            num_workers=(counts[0], counts[-1]) if is_elastic else training.num_workers,
            elastic_resize_monitor_interval_s=LOOK_EVERY_S,
            use_gpu=uses_gpu,
            resources_per_worker=_per_worker(training),
        ),
        "run_config": ray.train.RunConfig(
            name=name,
            storage_path=ray_path,
            storage_filesystem=None if storage.is_local(ray_folder) else where,
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
        ),
    }
    return ElasticTrainer(work, counts=counts, stop_file=stop_file, **settings) if is_elastic else TorchTrainer(work, **settings)


@contextmanager
def following(stages: Sequence[Planned]) -> Iterator[None]:
    """Say how far training is while the block runs, from the stages' own logs: where the run's folder is, workers write and the
    driver reads."""
    stop = threading.Event()
    training = stages[0].spec.training
    waiting = Waiting("train", _needs(training), free_resources, training.resources)
    thread = threading.Thread(target=follow, args=(stages, stop, waiting.progressed), daemon=True, name="rbft-follow")
    thread.start()
    try:
        with waiting:
            yield
    finally:
        stop.set()
        thread.join()


def _needs(training: TrainingConfig) -> str:
    """What workers need to start, for a person."""
    counts = training.worker_counts
    wanted = f"{counts[0]} to {counts[-1]}" if training.min_workers is not None else str(training.num_workers)
    return f"{wanted} workers of {resources(_per_worker(training), training.resources)}"


def _per_worker(training: TrainingConfig) -> dict[str, float]:
    gpu = {"GPU": training.num_gpus} if training.num_gpus > 0 else {}
    return {"CPU": training.num_cpus, **gpu, **training.resources}


def follow(stages: Sequence[Planned], stop: threading.Event, progressed: Callable[[], object] = lambda: None) -> None:
    """Say how far each of `stages` is, one after the other, until the last has ended or `stop` is set; `progressed` is called at news."""
    import ray

    metrics: TrainingMetrics | None = None
    several = len({planned.run.label for planned in stages}) > 1
    for planned in stages:
        log = f"{planned.spec.home}/log.jsonl"
        look_every_s = _LOOK_EVERY_S if storage.is_local(log) else _LOOK_IN_STORE_EVERY_S
        name = f"{planned.run.label} {planned.spec.name}" if several else planned.spec.name
        said_s, said_step = 0.0, 0
        while True:
            is_last_look = stop.is_set()
            line = _last_line(log)
            if line is not None and ray.is_initialized():
                metrics = metrics or TrainingMetrics()
                metrics.tell(planned.run.config.name, planned.spec.name, line)
            if line is not None and line["step"] != said_step:
                progressed()
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
            stop.wait(look_every_s)


def _last_line(log: str) -> dict[str, Any] | None:
    try:
        return storage.last_json_line(log)
    except (OSError, ArtifactError):  # a store that does not answer now
        return None


def _pace(line: dict[str, Any]) -> str:
    """How fast, and what of it is worth a word: MFU where it is known, waiting for data where that is much."""
    said = f"{line['samples_per_s']:.1f} samples/s"
    if "mfu" in line:
        said += f", MFU {percent(line['mfu'])}"
    if line["data_wait_share"] > MUCH_WAITING:
        said += f", {percent(line['data_wait_share'])} of it waiting for data"
    return said
