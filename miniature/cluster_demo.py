"""`make cluster-demo`: the demo on a cluster of this machine's own, two of whose nodes are killed while it runs.

    a head that takes no work, and two workers, with token authentication        ray start …
    the demo's pipeline, submitted                                                 rbft submit pipeline …
    a worker is killed while it writes rationales, and one in stage 1; each time another joins
    the same numbers as `make demo`, if that has run here

The world is the demo's; the run goes to runs/cluster/miniature. Every command is printed as it could be typed.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from miniature.demo import ROOT, SEED, SIZES, WORLD
from miniature.local_cluster import BIN, LocalCluster, tree
from miniature.write import drawn_world
from rbft.run_status import Step, read_status

RUN = ROOT / "runs/cluster/miniature"
CPUS = 2
"""Of a worker: room for the engine, or for both training workers."""
PATIENCE_S = 1800.0


def main() -> None:
    drawn_world(WORLD, SEED, SIZES)
    shutil.rmtree(RUN, ignore_errors=True)  # of an earlier demo, in which nothing would be left to be killed in
    folder = Path(tempfile.mkdtemp(prefix="rbft"))
    try:
        with LocalCluster(folder, tell=_show) as cluster:
            code = demonstrate(cluster)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if code:
        raise SystemExit(code)
    print(compare())


def demonstrate(cluster: LocalCluster) -> int:
    """The exit code of the submitted job, during which two workers are killed."""
    for _ in range(2):
        cluster.add_node(CPUS)
    words = ["rbft", "submit", "pipeline", "--config", "configs/miniature.yaml", "--set", "output_dir=runs/cluster"]
    words += ["--address", cluster.dashboard]
    _show(shlex.join(words))
    job = subprocess.Popen([str(BIN / "rbft"), *words[1:]], cwd=ROOT, env=cluster.environment)
    try:
        for reached, actor in (
            (lambda: (_step("rationales").done or 0) > 0, "EngineActor"),
            (lambda: _step("train rb-ft/rationale").checkpoint is not None, "RayTrainWorker"),
        ):
            _wait_for(reached, actor, job)
            worker = cluster.node_with(actor)
            if worker is None:
                raise SystemExit(f"no worker runs {actor}")
            _show(f"kill -9 {' '.join(str(process.pid) for process in tree(worker))}    # the worker with {actor}")
            cluster.kill_node(worker)
            cluster.add_node(CPUS)
        return job.wait()
    finally:
        job.kill()


def compare() -> str:
    """Whether the numbers are the demo's."""
    found, expected = RUN / "summary.json", ROOT / "runs/miniature/summary.json"
    if not expected.is_file():
        return "`make demo` has not run here, so that there is nothing to compare with"
    ours, theirs = (json.loads(path.read_text())["systems"] for path in (found, expected))
    if differing := differences(ours, theirs):
        raise SystemExit(f"not the numbers of `make demo`: {found} and {expected} differ in {'; '.join(differing)}")
    return "the same numbers as `make demo`"


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two summaries of runs say different things; numbers may differ by rounding, as what is scored together depends on time."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [each for key in one for each in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [each for index, pair in enumerate(zip(one, other, strict=True)) for each in differences(*pair, f"{where}/{index}")]
    if isinstance(one, float) and isinstance(other, float) and math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6):
        return []
    return [] if one == other else [f"{where}: {one} and {other}"]


def _show(command: str) -> None:
    print(f"$ {command}", flush=True)


def _step(name: str) -> Step:
    """Of the run; one with nothing done while there is no run."""
    if not (RUN / "run.json").is_file():
        return Step(name, "to do")
    return next(step for step in read_status(str(RUN)).steps if step.name == name)


def _wait_for(condition: Callable[[], bool], what: str, job: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline or job.poll() is not None:
            raise SystemExit(f"the job did not get as far as {what}")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
