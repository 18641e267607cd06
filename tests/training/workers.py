"""Functions run by real gloo workers: what Ray Train does for a stage, without Ray.

Workers are forked from one server that has imported DeepSpeed and transformers already: these imports are most of a worker's start.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.multiprocessing

# CPU and one thread: what is added up in which order then depends on nothing but the code under test.
_ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def run_workers(function: Callable[..., Any], num_workers: int, *arguments: Any) -> list[Any]:
    """What `function(*arguments)` gives on each of `num_workers` ranks of a process group; raises if it raises on one of them."""
    with mock.patch.dict(os.environ, _ENVIRONMENT), tempfile.TemporaryDirectory(prefix="rbft-gloo") as folder:
        multiprocessing.set_forkserver_preload(["rbft.training.loop", "deepspeed", "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"])
        multiprocessing.forkserver.ensure_running()
        workers = torch.multiprocessing.start_processes(
            _worker, (num_workers, folder, function, arguments), nprocs=num_workers, join=False, start_method="forkserver"
        )
        try:
            while not workers.join():
                pass
        finally:
            for process in workers.processes:
                process.kill()
        # Tensors in them, and written by ourselves a moment ago.
        return [torch.load(Path(folder) / f"result-{rank}.pt", weights_only=False) for rank in range(num_workers)]


def _worker(rank: int, num_workers: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_workers)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_workers)
    torch.save(function(*arguments), Path(folder) / f"result-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
