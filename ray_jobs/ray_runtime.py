"""Joining or starting Ray. A job that was submitted to a cluster, or that has RAY_ADDRESS set, joins it; else it starts one of its own."""

from __future__ import annotations

import logging
import os
import re
from typing import Any

from rbft.errors import JobError, RBFTError


def ensure_ray() -> None:
    """Join or start Ray unless this process has done so; it is left, and one that was started here ends, when the process does.

    Raises `JobError` if it cannot be joined or started.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray leaves CUDA_VISIBLE_DEVICES of CPU workers alone.
    # Ray Data's actors take constructor arguments from the object store, about which Ray's core complains once an actor.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {}
    if not os.environ.get("RAY_ADDRESS"):
        require_token_authentication()
        options = {"address": "local", "include_dashboard": False}
    try:
        # What workers print stays in Ray's logs; what a person should know, the job says itself.
        ray.init(log_to_driver=False, logging_level=logging.WARNING, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = os.environ.get("RAY_ADDRESS", "a local Ray")
        reason = " ".join(str(error).split())[:300]
        raise JobError(f"{where}: cannot be joined or started ({reason}); `rbft doctor` checks address and token") from error
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # why a job failed it says itself, by `reason`
    context = DataContext.get_current()
    context.enable_progress_bars = False
    # Ray Data ends a job that has waited for half an hour. Ours wait for room as long as it takes, and say so (`ray_jobs.waiting`); an
    # engine that hangs ends by `engine.request_timeout_s`.
    context.execution_no_progress_timeout_s = -1


def free_resources() -> dict[str, float]:
    """What the cluster has left, by name; empty while its head does not answer, or before Ray is there."""
    import ray

    if not ray.is_initialized():
        return {}
    try:
        return dict(ray.available_resources())
    except (ray.exceptions.RayError, ConnectionError, RuntimeError):
        return {}


def require_token_authentication() -> None:
    """To be called before a Ray is started: it listens on the machine's addresses, and runs what it is sent.

    Raises `JobError` if the environment turns its token off. Without a word about it, Ray makes a token.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        raise JobError(
            f"RAY_AUTH_MODE is {os.environ['RAY_AUTH_MODE']!r}: the Ray that this would start runs the code of whoever reaches this "
            "machine; unset RAY_AUTH_MODE, and Ray makes a token"
        )
    # Ray would warn at every start that its token is on, which is as it should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)


def reason(error: BaseException) -> str:
    """Why a Ray call failed, in one line: our own error where one is at the root of it, else the end of what Ray says."""
    ours = _root(error)
    if ours is not None:
        return str(ours)
    # Causes do not travel between processes; the text of their trace does.
    told = re.search(r"^rbft\.errors\.\w+: (.+)$", str(error), re.MULTILINE)
    return told[1] if told else " ".join(str(error).split())[-600:]


def _root(error: BaseException | None) -> RBFTError | None:
    if error is None or isinstance(error, RBFTError):
        return error
    workers = getattr(error, "worker_failures", {}).values()
    return next((found for link in (*workers, getattr(error, "cause", None), error.__cause__) if (found := _root(link)) is not None), None)
