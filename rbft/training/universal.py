"""A checkpoint for another number of workers: DeepSpeed's universal format, a file a parameter and state in place of a shard a worker."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rbft import artifacts
from rbft.errors import CheckpointError

_EXTRACT_PROCESSES = 4
"""Each holds one worker's optimiser shard."""
_MERGE_PROCESSES = 8
"""Each holds one parameter."""


def convert(source: Path, target: Path, fingerprint: str) -> None:
    """Make of the verified shards in `source` the universal checkpoint `target`, and mark its parent folder complete.

    What is there and complete is kept. DeepSpeed's own tool does it, in a process of its own: it forks, and this process may hold a GPU.
    Raises `CheckpointError` if it fails.
    """
    folder = target.parent
    if artifacts.is_complete(str(folder), fingerprint):
        return
    shutil.rmtree(folder, ignore_errors=True)
    target.mkdir(parents=True)
    num_cpus = len(os.sched_getaffinity(0))
    command = [
        *(sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"),
        *("--input_folder", str(source), "--output_folder", str(target)),
        *("--num_extract_workers", str(min(num_cpus, _EXTRACT_PROCESSES)), "--num_merge_workers", str(min(num_cpus, _MERGE_PROCESSES))),
    ]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        told = " ".join(done.stdout.split())[-600:]
        raise CheckpointError(f"{source}: could not be converted for another number of workers: {told}")
    artifacts.mark_complete(str(folder), fingerprint, artifacts.folder_hashes(folder), {"source": source.parent.name})


def load_universal(engine: Any, folder: Path, tag: str) -> str | None:
    """Load the universal checkpoint `tag` in `folder`; the path, None if DeepSpeed could not."""
    # DeepSpeed 0.19 gives every group of a ZeRO-3 optimiser the values of the first: learning rates, decay and names of the others would
    # be lost.
    groups = [{name: value for name, value in group.items() if name != "params"} for group in engine.optimizer.param_groups]
    engine._config.load_universal_checkpoint = True
    try:
        path, _ = engine.load_checkpoint(str(folder), tag=tag)
    finally:
        engine._config.load_universal_checkpoint = False
    for group, kept in zip(engine.optimizer.param_groups, groups, strict=True):
        group.update(kept)
    # And it lets them share one counter of steps, which then each of them would move on.
    for state in engine.optimizer.optimizer.state.values():
        if "step" in state:
            state["step"] = state["step"].clone()
    return path
