"""The benchmark of the model step at tiny size on the CPU: it runs, and its variants compute the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_training import VARIANTS, _MasterAdamW, main

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For products as small as these, threads that wait for one another cost far more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_variant_runs_and_has_the_same_loss(tmp_path: Path) -> None:
    main(["--model", "tiny", "--steps", "1", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())["models"]["tiny"]
    assert found.keys() == VARIANTS.keys()
    assert all(each["error"] == "" and each["step_s"] > 0 and each["share_of_product"] > 0 for each in found.values())
    assert [each["loss"] for each in found.values()] == pytest.approx([found["all"]["loss"]] * len(found), rel=1e-5)
    assert found["all"]["padded_share"] == 0 < found["padded"]["padded_share"]


def test_fp32_masters_keep_updates_that_bf16_weights_lose() -> None:
    """Forty updates of 1e-4, each less than half of what a bf16 weight of 1 can tell apart."""
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimiser = _MasterAdamW([weight], lr=1e-4, fused=False)
    plain = torch.optim.AdamW([kept := torch.nn.Parameter(weight.detach().clone())], lr=1e-4)
    for _ in range(40):
        for each, of in ((weight, optimiser), (kept, plain)):
            (each.sum() / 2).backward()
            (each.sum() / 2).backward()
            of.step()
            of.zero_grad()
    assert weight.grad is None
    assert float(weight.detach()[0]) == pytest.approx(1 - 40e-4, abs=2e-3) and float(kept.detach()[0]) == 1.0


def test_it_needs_torch_and_transformers_alone() -> None:
    blocked = ("ray", "vllm", "deepspeed", "pydantic", "av", "decord", "pyarrow", "torchvision", "miniature")
    arguments = ["--model", "tiny", "--variant", "all", "--steps", "1"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import benchmarks.gpu_training as b; b.main({arguments!r})"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\| all \| \d+\.\d+ s \|", done.stdout, re.MULTILINE)
