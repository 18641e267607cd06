"""Checkpoints of a video classifier's training: weights and AdamW's state as safetensors, the same on all workers, written by the first.

    step-00000050/model.safetensors      weights and buffers
    step-00000050/optimiser.safetensors  <parameter>/<state> of AdamW
    step-00000050/COMPLETE.json          both with size and hash; written last

So training goes on bit for bit with as many workers, and with any other number but for rounding.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rbft import artifacts
from rbft.errors import ArtifactError, CheckpointError
from rbft.training.checkpoints import checkpoint_path, complete_checkpoints, newest_checkpoint, verify_together

_MODEL, _OPTIMISER = "model.safetensors", "optimiser.safetensors"


def save_checkpoint(
    folder: Path, model: Any, optimiser: torch.optim.Optimizer, fingerprint: str, step: int, bad_videos: dict[str, str], num_kept: int
) -> Path:
    """Write the state after `step` optimiser steps below `folder`, on one worker; the `num_kept` newest checkpoints stay.

    `bad_videos` (id -> error code) are those of all workers so far. Raises `CheckpointError` if it cannot be written.
    """
    target = checkpoint_path(folder, step)
    try:
        if not artifacts.is_complete(str(target), fingerprint):
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            save_file(_on_cpu(model.state_dict()), target / _MODEL)
            save_file(_on_cpu(_optimiser_state(model, optimiser)), target / _OPTIMISER)
            artifacts.publish(target, str(target), fingerprint, {"step": step, "bad_videos": bad_videos})
    except (OSError, ArtifactError) as error:
        raise CheckpointError(f"{target}: cannot be written ({error}); make room or mend the disk and submit the job again") from None
    kept = complete_checkpoints(folder)[-num_kept:]
    for old in folder.glob("step-*"):
        if old not in kept:
            (old / artifacts.MARKER).unlink(missing_ok=True)
            shutil.rmtree(old, ignore_errors=True)
    return target


def load_newest(folder: Path, model: Any, optimiser: torch.optim.Optimizer, fingerprint: str) -> tuple[int, dict[str, str]]:
    """Load the newest complete checkpoint below `folder`, the same one on every worker; all of them call this.

    Gives its optimiser steps and bad videos, 0 and {} if there is none. Raises `CheckpointError` if it is of another configuration, or
    its bytes have changed.
    """
    newest = newest_checkpoint(folder)
    if newest is None:
        return 0, {}
    marker = artifacts.read_marker(str(newest))
    if marker["fingerprint"] != fingerprint:
        raise CheckpointError(f"{newest}: is of another configuration; delete {folder} to start afresh")
    verify_together(newest)
    model.load_state_dict(load_file(newest / _MODEL))
    names = {parameter: name for name, parameter in model.named_parameters()}
    state: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in load_file(newest / _OPTIMISER).items():
        name, _, what = key.rpartition("/")
        state.setdefault(name, {})[what] = value
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            # AdamW's count of steps stays on the CPU, as it makes it there itself.
            own = state.get(names[parameter], {})
            optimiser.state[parameter] = {what: value if what == "step" else value.to(parameter.device) for what, value in own.items()}
    return int(marker["lineage"]["step"]), dict(marker["lineage"]["bad_videos"])


def _optimiser_state(model: Any, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {f"{names[parameter]}/{what}": value for parameter, state in optimiser.state.items() for what, value in state.items()}


def _on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
