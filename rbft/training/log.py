"""What a stage tells while it trains: a line a step in log.jsonl, and the same as TensorBoard scalars, and in MLflow if it is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rbft import storage
from rbft.errors import TrainingStopped
from rbft.training.stage import StageSpec
from rbft.training.tracking import MLflowRun


class StageLog:
    """log.jsonl and TensorBoard scalars of a stage. A resumed stage drops the lines after the step it resumes from.

    A context manager; what leaves its block is the stage's outcome.
    """

    def __init__(self, folder: Path, first_step: int, mlflow: MLflowRun | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "log.jsonl"
        # What stands after the last newline was being written when the process died.
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= first_step]
        storage.write_bytes(str(path), b"".join(line + b"\n" for line in kept))
        self.losses = [float(json.loads(line)["loss"]) for line in kept]
        """Of the steps before `first_step`."""
        self._lines, self._mlflow = path.open("a"), mlflow
        self._scalars = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, line: Mapping[str, Any]) -> None:
        """`line["step"]` is the step; what is no number goes to log.jsonl alone."""
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        if self._mlflow is not None:
            self._mlflow.write(line)
        for name, value in line.items():
            if name not in ("step", "num_steps") and isinstance(value, int | float):
                self._scalars.add_scalar(name, value, int(line["step"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lines.close()
        self._scalars.close()
        if self._mlflow is not None:
            self._mlflow.close("FINISHED" if error is None else "KILLED" if isinstance(error, TrainingStopped) else "FAILED")


def open_log(spec: StageSpec, first_step: int) -> StageLog:
    """The log of a stage that goes on from `first_step`."""
    mlflow = None
    if spec.training.mlflow_uri is not None:
        told = ("system", "stage", "epochs", "seed", "num_items", "class_balance", "num_replay")
        params = {name: spec.lineage[name] for name in told if name in spec.lineage}
        params |= {name: getattr(spec.training, name) for name in ("global_batch_size", "num_workers", "precision")}
        params |= spec.optimiser.model_dump(mode="json")
        tags = {name: value for name, value in spec.lineage.items() if isinstance(value, str)} | {"fingerprint": spec.fingerprint}
        experiment = str(spec.lineage.get("run", spec.task.name))
        mlflow = MLflowRun(spec.training.mlflow_uri, Path(spec.folder), experiment, spec.name, params, tags)
    return StageLog(Path(spec.folder), first_step, mlflow)
