"""`rbft doctor`: what of this machine, environment, cluster and model is right, what is not, and how to mend it.

    checks = run_checks(model_dir, run_dir, ray_address, config)
    print(format_checks(checks)); sys.exit(exit_code(checks))

Libraries are tried in child processes: a broken one may end its process, and the doctor must outlive it. Ray is asked over HTTP.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rbft.doctor.check import Check
from rbft.doctor.cluster import check_ray
from rbft.doctor.libraries import check_decoders, check_decord, check_model_libraries, check_pyav, check_torch
from rbft.doctor.machine import check_compiler, check_memory, check_run_folder, check_shared_memory
from rbft.doctor.model import check_model_folder, check_video_classifier
from rbft.doctor.packages import check_packages, check_python

if TYPE_CHECKING:
    from rbft.config import RunConfig

__all__ = ["Check", "check_model_folder", "check_video_classifier", "exit_code", "format_checks", "run_checks"]


def run_checks(
    model_dir: str | None = None, run_dir: str | None = None, ray_address: str | None = None, config: RunConfig | None = None
) -> list[Check]:
    """Every check, in the order to mend them; with `config` also of the models that this run needs. `ray_address` defaults to
    RAY_ADDRESS, `run_dir` to "runs"; takes about 20 s."""
    checks = [
        check_python(),
        *check_packages(),
        check_pyav(),
        check_decord(),
        check_decoders(),
        *check_torch(),
        check_model_libraries(),
        check_compiler(),
    ]
    checks += [check_memory(), check_shared_memory(), check_run_folder(run_dir or "runs")]
    checks.append(check_ray(ray_address or os.environ.get("RAY_ADDRESS")))
    if model_dir is not None:
        checks.append(check_model_folder(model_dir))
    if config is not None:
        checks += [check_model_folder(config.model.path)] if config.evaluation.systems else []
        checks += [check_video_classifier(classifier) for classifier in config.evaluation.video_classifiers]
    return checks


def format_checks(checks: Sequence[Check]) -> str:
    """One line a check, an indented line of what to do below those that need it, and a line of counts."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{check.status.upper() if check.status != 'ok' else 'ok':<5} {check.name:<{width}}  {check.found}")
        if check.mend:
            lines.append(f"{'':<5} {'':<{width}}  -> {check.mend}")
    counts = {status: sum(check.status == status for check in checks) for status in ("ok", "warn", "fail")}
    return "\n".join([*lines, f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} to mend"])


def exit_code(checks: Sequence[Check]) -> int:
    """1 if any check failed, else 0."""
    return int(any(check.status == "fail" for check in checks))
