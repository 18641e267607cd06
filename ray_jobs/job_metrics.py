"""What a job's driver tells Ray's metrics: how much generation or evaluation is left, and how training goes. Labelled with the run.

rbft_inference_remaining_videos   of what the job asks engines about; nothing left is 0
rbft_training_step                of `rbft_training_num_steps`, the stage's last
rbft_training_loss                of that step, as rbft_training_grad_norm, rbft_training_samples_per_second,
                                  rbft_training_data_wait_ratio and, where it is known, rbft_training_mfu
rbft_training_failures            trainings that ended for good, by `reason`: one of `REASONS`

With those of `ray_jobs.engine_metrics` these are all of ours; the service's are Ray Serve's (docs/operations.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray_jobs.engine_metrics import NOT_YET
from rbft.errors import NotFiniteError, TrainingError

REASONS = ("not_finite", "refused", "workers")
"""Why a training fails: a loss or gradient that is no number, another `TrainingError`, or workers that died too often."""


class RemainingVideos:
    """Made where Ray is."""

    def __init__(self, run: str, total: int) -> None:
        from ray.util.metrics import Gauge

        self._gauge = Gauge("rbft_inference_remaining_videos", "Videos that the job has still to ask engines about.", ("run",))
        self._gauge.set_default_tags({"run": run})
        self._left = total
        self._gauge.set(total)

    def done(self, num_videos: int) -> None:
        self._left -= num_videos
        self._gauge.set(self._left)


class TrainingMetrics:
    """Of the trainings of one driver. Made where Ray is."""

    def __init__(self) -> None:
        from ray.util.metrics import Gauge

        labels = ("run", "stage")
        self._step = Gauge("rbft_training_step", "Optimiser steps done.", labels)
        self._num_steps = Gauge("rbft_training_num_steps", "Optimiser steps of the stage.", labels)
        self._measured = {
            "loss": Gauge("rbft_training_loss", "Mean loss of a supervised token in the global batch.", labels),
            "grad_norm": Gauge("rbft_training_grad_norm", "Norm of the gradient before clipping.", labels),
            "samples_per_s": Gauge("rbft_training_samples_per_second", "Samples a second, over the last 20 steps.", labels),
            "data_wait_share": Gauge("rbft_training_data_wait_ratio", "Share of the time spent waiting for data.", labels),
            "mfu": Gauge("rbft_training_mfu", "Model FLOPs utilisation.", labels),
        }

    def tell(self, run: str, stage: str, line: Mapping[str, Any]) -> None:
        """What a line of the stage's log.jsonl says."""
        labels = {"run": run, "stage": stage}
        self._step.set(line["step"], labels)
        self._num_steps.set(line["num_steps"], labels)
        for name, gauge in self._measured.items():
            if name in line:
                gauge.set(line[name], labels)


class TrainingFailures:
    """Made where Ray is, before anything can fail: Prometheus sees a rise only of what was there before."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Counter

        self._counter = Counter("rbft_training_failures", "Trainings that ended for good, by reason.", ("run", "reason"))
        self._counter.set_default_tags({"run": run})
        for reason in REASONS:
            self._counter.inc(NOT_YET, {"reason": reason})

    def count(self, error: BaseException) -> None:
        reason = "not_finite" if isinstance(error, NotFiniteError) else "refused" if isinstance(error, TrainingError) else "workers"
        self._counter.inc(1, {"reason": reason})
