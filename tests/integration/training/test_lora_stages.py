"""Two stages with LoRA: `final/` is a whole model, its adapter stands beside it, and stage 2 begins where stage 1 ended."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import ProcessExitedException

from rbft import artifacts
from rbft.config import LoraConfig
from rbft.data.samples import TrainingItem
from rbft.models.adapters import merge_adapter
from rbft.models.export import export_model
from rbft.models.load import load_model, read_card
from rbft.training.loop import run_stage
from rbft.training.stage import StageSpec
from tests.samples import TASK
from tests.training.stages import OPTIMISER, losses, make_items, make_stage, make_training, run_stages, run_until_killed
from tests.training.workers import run_workers

LORA = LoraConfig(rank=4, alpha=16, dropout=0.1, vision="all")
FASTER = OPTIMISER.model_copy(update={"lr_language": 1e-2, "lr_vision": 2e-3})


@pytest.fixture(scope="module")
def items(videos: list[Path]) -> list[TrainingItem]:
    return make_items(videos)


@pytest.fixture(scope="module")
def stages(tiny_model: Path, items: list[TrainingItem], tmp_path_factory: pytest.TempPathFactory) -> tuple[StageSpec, StageSpec]:
    folder = tmp_path_factory.mktemp("stages")
    training = make_training(2, 2, lora=LORA, checkpoint_every_steps=2)
    first = make_stage(tiny_model, folder / "first", training, optimiser=FASTER)
    third = make_training(2, 2, zero_stage=3, lora=LORA, checkpoint_every_steps=2)
    second = make_stage(folder / "first" / "final", folder / "second", third, optimiser=FASTER, epochs=1, fingerprint="e" * 16)
    left = run_workers(run_stages, 2, [(spec, items) for spec in (first, second)])
    assert left == [{"engines": 0}, {"engines": 0}], "an engine outlived its stage"
    return first, second


def test_final_is_whole_and_the_adapter_beside_it_makes_it_from_the_base(
    stages: tuple[StageSpec, StageSpec], tiny_model: Path, tmp_path: Path
) -> None:
    for spec, base in ((stages[0], tiny_model), (stages[1], Path(stages[0].folder) / "final")):
        final, adapter = Path(spec.folder) / "final", Path(spec.folder) / "adapter"
        for folder in (final, adapter):
            artifacts.verify(folder)
            assert artifacts.is_complete(str(folder), spec.fingerprint)
            assert read_card(folder)[0] == TASK
        assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
        assert "merged the adapter" in export_model(str(adapter), str(tmp_path / spec.fingerprint))
        assert (tmp_path / spec.fingerprint / "model.safetensors").read_bytes() == (final / "model.safetensors").read_bytes()
        trained, before = load_model(final, "float32"), load_model(base, "float32")
        changed = {name for name, weight in before.named_parameters() if not torch.equal(weight, trained.get_parameter(name))}
        # All linear layers of both towers' blocks, and nothing else.
        assert changed == {
            name
            for name in dict(before.named_parameters())
            if name.endswith("_proj.weight") or "attn.qkv.weight" in name or "attn.proj.weight" in name
        }


def test_stage_2_goes_on_where_stage_1_ended(stages: tuple[StageSpec, StageSpec]) -> None:
    first, second = stages
    assert losses(first)[-1] < losses(first)[0] - 0.1
    assert losses(second)[0] < losses(first)[0] - 0.1


@pytest.mark.slow
def test_a_stage_with_dropout_that_was_killed_ends_as_the_uninterrupted_one(
    stages: tuple[StageSpec, StageSpec], items: list[TrainingItem], tmp_path: Path
) -> None:
    spec = replace(stages[0], folder=str(tmp_path / "stage"))
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_workers(run_until_killed, 2, spec, items, 3)
    run_workers(run_stage, 2, spec, items)
    for part in ("final/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (Path(spec.folder) / part).read_bytes() == (Path(stages[0].folder) / part).read_bytes()
    assert losses(spec) == losses(stages[0])


def test_an_adapter_merges_in_its_own_precision(stages: tuple[StageSpec, StageSpec], tiny_model: Path) -> None:
    merged = merge_adapter(Path(stages[0].folder) / "adapter", str(tiny_model))
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
