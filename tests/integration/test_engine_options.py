"""How engines may be laid out on a node: several with cores of their own, or one in several parts. The texts do not change."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rbft.config import load_config
from rbft.engines.base import Sampling
from rbft.engines.vllm import VllmEngine
from rbft.errors import EngineGoneError
from rbft.video.decode import decode
from tests.integration.conftest import Jobs, RayCluster
from tests.integration.test_nodes import written
from tests.integration.test_survival import title
from tests.serve.samples import write_clip

pytestmark = [pytest.mark.timeout(1500), pytest.mark.slow]


def test_engines_of_one_node_have_cores_of_their_own(jobs: Jobs, ray_cluster: RayCluster, finished_run: Path) -> None:
    run = jobs.run_dir("pinned")
    job = jobs.start("generate", "pinned", "engine.num_actors=2", "engine.pin_cores=true", "engine.num_cpus=1", "engine.rows_per_block=4")
    cores: dict[str, dict[int, list[int]]] = {"EngineActor": {}, "EngineCore": {}, "rbft.video.child": {}}
    # All along: the one engine may be done with everything before the other has started.
    while job.poll() is None:
        for process in psutil.Process(ray_cluster.pid).children(recursive=True):
            for kind, seen in cores.items():
                if kind in title(process):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        seen[process.pid] = process.cpu_affinity()
        time.sleep(0.1)
    output, _ = job.communicate()
    assert job.returncode == 0, output
    of_actors = [each for each in cores["EngineActor"].values() if len(each) == 1]
    assert len({core for (core,) in of_actors}) == 2, "two actors, two cores"
    for kind in ("EngineCore", "rbft.video.child"):
        assert cores[kind], kind
        assert all(each in of_actors for each in cores[kind].values())
    assert written(run) == written(finished_run)


def test_an_engine_in_two_parts_writes_what_one_writes(jobs: Jobs, finished_run: Path) -> None:
    """Tensor parallel. Sums are taken in another order, so a word where two are as likely may differ: most texts must be the same."""
    jobs.run("generate", "two-parts", "engine.tensor_parallel_size=2", "engine.num_cpus=2")
    two, one = written(jobs.run_dir("two-parts")), written(finished_run)
    assert [id_ for id_, _ in two] == [id_ for id_, _ in one]
    assert sum(text == other for (_, text), (_, other) in zip(two, one, strict=True)) >= 0.9 * len(one)


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


def test_a_request_that_a_dying_engine_had_not_taken_in_ends(repository: Path, tmp_path: Path) -> None:
    """Nobody tells it: vLLM knows of its engine's death before it knows of the request."""
    config = load_config(repository / "configs/miniature.yaml")
    clip = decode(write_clip(tmp_path / "clip.mp4"), config.video.spec())

    async def scenario() -> None:
        engine = VllmEngine(config.model, config.engine, config.video.spec())
        try:
            (core,) = [child for child in psutil.Process().children(recursive=True) if "EngineCore" in title(child)]
            core.suspend()
            asked = asyncio.ensure_future(engine.generate(clip, config.task.question_messages(), Sampling(4)))
            await asyncio.sleep(2)
            assert not asked.done()
            core.kill()
            with pytest.raises(EngineGoneError):
                await asyncio.wait_for(asked, 20)
        finally:
            engine.close()

    asyncio.run(scenario())
