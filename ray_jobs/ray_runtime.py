"""Joining or starting Ray. A job that was submitted to a cluster, or that has RAY_ADDRESS set, joins it; else it starts one of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from rbft.errors import JobError


@contextmanager
def ray_runtime() -> Iterator[None]:
    """Ray for the duration of the block; a Ray started here ends with it, one that was joined goes on."""
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray leaves CUDA_VISIBLE_DEVICES of CPU workers alone.
    if ray.is_initialized():
        yield
        return
    # Ray Data's actors take constructor arguments from the object store, about which Ray's core complains once an actor.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    joins = bool(os.environ.get("RAY_ADDRESS"))
    try:
        if joins:
            ray.init(logging_level=logging.WARNING)
        else:
            ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = os.environ.get("RAY_ADDRESS", "a local Ray")
        reason = " ".join(str(error).split())[:300]
        raise JobError(f"{where}: cannot be joined or started ({reason}); `rbft doctor` checks address and token") from error
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()
