"""Training with as many workers as there is room for: of the counts that divide the global batch, the largest that fits.

Ray Train's own elastic policy takes any count between two numbers, and ends the workers where they are when there is room for more. Ours
takes none but the possible ones, and asks them to save first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ResizeDecision

from ray_jobs.stopping import write_stop_file

LOOK_EVERY_S = 60.0
"""How often it is asked whether there is room for more workers."""


def largest_count(counts: Sequence[int], room: int) -> int:
    """The largest of `counts` that is at most `room`; 0 if none is."""
    return max((count for count in counts if count <= room), default=0)


class DividingPolicy(ElasticScalingPolicy):
    """Chooses among `counts`. A running group is asked to stop by `stop_file`, and the job then starts another
    (`ray_jobs.training_workers`)."""

    def __init__(self, scaling_config: Any, counts: Sequence[int], stop_file: str) -> None:
        super().__init__(scaling_config)
        self._counts, self._stop_file = tuple(counts), stop_file

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        return largest_count(self._counts, super()._count_possible_workers(reserved_resources))

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision):
            write_stop_file(self._stop_file, f"there is room for {decision.num_workers} workers")
        return NoopDecision()


class ElasticTrainer(TorchTrainer):
    """A `TorchTrainer` with a `DividingPolicy`: Ray has no public way to give one."""

    def __init__(self, *arguments: Any, counts: Sequence[int], stop_file: str, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self._policy = DividingPolicy(self.scaling_config, counts, stop_file)

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        return super()._initialize_and_run_controller(**(arguments | {"scaling_policy": self._policy}))
