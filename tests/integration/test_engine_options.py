"""How engines may be laid out on a node: several with cores of their own, or one in several parts. The texts do not change."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import Jobs, RayCluster, wait_for
from tests.integration.test_nodes import written
from tests.integration.test_survival import engine_cores

pytestmark = [pytest.mark.timeout(1500), pytest.mark.slow]


def test_engines_of_one_node_have_cores_of_their_own(jobs: Jobs, ray_cluster: RayCluster, finished_run: Path) -> None:
    run = jobs.run_dir("pinned")
    job = jobs.start("generate", "pinned", "engine.num_actors=2", "engine.pin_cores=true", "engine.num_cpus=1", "engine.rows_per_block=4")
    wait_for(lambda: len(engine_cores(ray_cluster)) == 2, job)
    cores = [each.cpu_affinity() for each in engine_cores(ray_cluster)]
    wait_for(lambda: len(list(run.glob("rationales/*/parts/*.parquet"))) > 0, job)
    decoders = {tuple(each.cpu_affinity()) for each in below(ray_cluster) if "rbft.video.child" in " ".join(each.cmdline())}
    output, _ = job.communicate(timeout=900)
    assert job.returncode == 0, output
    assert [len(each) for each in cores] == [1, 1] and cores[0] != cores[1]
    assert decoders <= {tuple(each) for each in cores}
    assert written(run) == written(finished_run)


def test_an_engine_in_two_parts_writes_what_one_writes(jobs: Jobs, finished_run: Path) -> None:
    """Tensor parallel. Sums are taken in another order, so a word where two are as likely may differ: most texts must be the same."""
    jobs.run("generate", "two-parts", "engine.tensor_parallel_size=2", "engine.num_cpus=2")
    two, one = written(jobs.run_dir("two-parts")), written(finished_run)
    assert [id_ for id_, _ in two] == [id_ for id_, _ in one]
    assert sum(text == other for (_, text), (_, other) in zip(two, one, strict=True)) >= 0.9 * len(one)


def below(ray_cluster: RayCluster) -> list[psutil.Process]:
    return list(psutil.Process(ray_cluster.pid).children(recursive=True))


OWNER = """
import asyncio, sys, psutil
from rbft.config import load_config
from rbft.engines.vllm import VllmEngine
async def own():
    config = load_config(sys.argv[1])
    engine = VllmEngine(config.model, config.engine, config.video.spec())
    print("below", *[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
    await asyncio.sleep(600)
asyncio.run(own())
"""


def test_an_engine_ends_with_its_owner_however_that_ends(repository: Path) -> None:
    """Nobody above cleans up here; below a raylet that dies nobody does either."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(repository / "configs/miniature.yaml")], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    try:
        (line,) = itertools.islice((line for line in owner.stdout if line.startswith("below ")), 1)  # after what vLLM has to say
        below_it = [psutil.Process(int(pid)) for pid in line.split()[1:]]
        assert any("VLLM" in each.name() for each in below_it), "the engine"
    finally:
        owner.kill()
        owner.wait()
    _, alive = psutil.wait_procs(below_it, timeout=20)
    assert not alive
