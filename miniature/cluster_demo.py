"""`make cluster-demo`: the demo on a cluster of this machine's own, two of whose nodes are killed while it runs.

    a head that takes no work, and two workers, with token authentication        ray start …
    the demo's pipeline, submitted                                                 rbft submit pipeline …
    a worker is killed while it writes rationales, and one in stage 1; each time another joins
    the same numbers as `make demo`, which runs first if it has not run here

The world is the demo's; the run goes to runs/cluster/miniature. Every command is printed as it could be typed.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import subprocess
import sys
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
NUMBERS = ("systems", "by_generated_text", "baselines", "mcnemar_p")
"""Of summary.json: what the report shows that does not depend on when and where it was made."""


def main() -> None:
    drawn_world(WORLD, SEED, SIZES)
    if not (ROOT / "runs/miniature/summary.json").is_file():
        _show("make demo    # has not run here, and there would be nothing to compare with")
        if code := subprocess.run([sys.executable, "-m", "miniature.demo"], cwd=ROOT, check=False).returncode:
            raise SystemExit(code)
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
        for name, reached, actor in (
            ("rationales", lambda step: True, "EngineActor"),
            ("train rb-ft/rationale", lambda step: step.checkpoint is not None, "RayTrainWorker"),
        ):
            _wait_for(name, reached, job)
            worker = cluster.node_with(actor)
            if worker is None:
                raise SystemExit(f"no worker runs {actor}")
            _show(f"kill -9 {' '.join(str(process.pid) for process in tree(worker))}    # the worker with {actor}")
            cluster.kill_node(worker)
            _require_begun(_step(name))
            cluster.add_node(CPUS)
        return job.wait()
    finally:
        job.kill()


def compare() -> str:
    """Says that the numbers of the report, and those of each system, are the demo's; raises `SystemExit` where they are not."""
    demo = ROOT / "runs/miniature"
    if not (demo / "summary.json").is_file():
        raise SystemExit("there is nothing to compare with: run `make demo` first")
    ours, theirs = (_numbers(folder) for folder in (RUN, demo))
    if differing := differences(ours, theirs):
        raise SystemExit(f"not the numbers of `make demo`: {RUN} and {demo} differ in {'; '.join(differing)}")
    return f"the same numbers as `make demo`: {', '.join(ours)}"


def _numbers(folder: Path) -> dict[str, Any]:
    """Of the report of the run in `folder`, and every figure that was computed of each system's predictions."""
    summary = json.loads((folder / "summary.json").read_text())
    recorded = json.loads((folder / "run.json").read_text())["artifacts"]
    found = {name: summary.get(name) for name in NUMBERS}
    for system in summary["systems"]:
        parts = Path(recorded[f"evaluation/{system}"]).parts[-3:]  # the run may have been moved
        metrics = json.loads(folder.joinpath(*parts, "metrics.json").read_text())
        del metrics["fingerprint"]  # of the rows, to the last digit
        found[f"metrics of {system}"] = metrics
    return found


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


def _wait_for(name: str, reached: Callable[[Step], bool], job: subprocess.Popen[bytes]) -> None:
    """Until that step of the run has begun, and `reached` what it should."""
    deadline = time.monotonic() + PATIENCE_S
    while (step := _step(name)).state == "to do" or not reached(step):
        if time.monotonic() > deadline or job.poll() is not None:
            raise SystemExit(f"the job did not get as far as {name}")
        time.sleep(0.2)
    _require_begun(step)


def _require_begun(step: Step) -> None:
    """What is done already cannot be survived."""
    if step.state != "begun":
        raise SystemExit(f"{step.name} is {step.state}: no worker could be killed in the middle of it")


if __name__ == "__main__":
    main()
