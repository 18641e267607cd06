"""Loss curves, from the `log.jsonl` that training leaves beside its checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from rbft import storage
from rbft.errors import ArtifactError


@dataclass(frozen=True)
class LossCurve:
    """The training loss of one stage of one system."""

    system: str
    stage: str
    steps: tuple[int, ...]
    """Optimiser steps, rising."""
    losses: tuple[float, ...]
    """Token mean over the global batch, nats; NaN or infinite where training said so."""
    file: str = ""
    """Where they were read."""


def read_curve(uri: str, system: str, stage: str) -> LossCurve:
    """The loss curve in the file `uri`. Where a resumed run logged a step again, the last record counts.

    A line that is not a JSON object is left out: a process that is killed while it appends leaves one, and the steps after it are sound.

    Raises:
        ArtifactError: no such file, or no line with a step and a loss.
    """
    loss_at: dict[int, float] = {}
    for line in storage.read_bytes(uri).decode(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record and "loss" in record:
            loss_at[int(record["step"])] = math.nan if record["loss"] is None else float(record["loss"])
    if not loss_at:
        raise ArtifactError(f"{uri}: no line holds a step and its loss; train this stage again")
    steps = tuple(sorted(loss_at))
    return LossCurve(system=system, stage=stage, steps=steps, losses=tuple(loss_at[step] for step in steps), file=uri)


def read_curves(folders: Mapping[tuple[str, str], str]) -> list[LossCurve]:
    """The loss curve of each stage; `folders` maps (system, stage) to where it was trained."""
    return [read_curve(f"{folder}/log.jsonl", system, stage) for (system, stage), folder in folders.items()]
