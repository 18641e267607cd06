"""LoRA: which layers, what is frozen, what a file holds, and that merging changes no answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer

from rbft import artifacts
from rbft.cli import main
from rbft.config import LoraConfig, OptimiserConfig, TrainingConfig
from rbft.errors import ArtifactError, ModelError
from rbft.models.adapters import adapted_layers, add_adapters, is_adapter, merge_adapter, save_adapter
from rbft.models.card import MODEL_CARD, model_card
from rbft.models.chat import ChatAdapter
from rbft.models.export import export_model
from rbft.models.load import TASK_CARD, load_model, make_card, read_card
from rbft.models.parameter_groups import build_parameter_groups
from rbft.training.activations import recompute_activations
from rbft.training.loss import SupervisedLoss
from tests.samples import SPEC, TASK, random_clip

EVERYWHERE = LoraConfig(rank=4, alpha=8, vision="all")
FINGERPRINT = "ab" * 8
README = model_card(TASK, SPEC, {"run": "r"}, {"macro_f1": 0.7, "accuracy": 0.75})


@pytest.fixture(scope="module")
def batch(model_folder: Path) -> dict[str, torch.Tensor]:
    adapter = ChatAdapter(model_folder, SPEC)
    return adapter.collate([adapter.encode(random_clip(4 + 2 * i), TASK.question_messages(), "abnormal"[: 4 + i]) for i in range(2)])


def adapted(folder: Path, lora: LoraConfig = EVERYWHERE, seed: int = 0) -> Any:
    model = load_model(folder, "float32")
    add_adapters(model, lora, seed)
    return model


def disturb(model: Any) -> None:
    """Give the adapters something to say: PEFT's begin at nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.add_(0.1 * torch.randn_like(parameter))


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(**{name: value for name, value in batch.items() if name != "labels"}).logits
    return found


@pytest.fixture(scope="module")
def saved(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model whose adapters do something, and the folder they were written to."""
    model = adapted(model_folder)
    disturb(model)
    folder = tmp_path_factory.mktemp("stage") / "adapter"
    folder.mkdir()
    weights = {name: parameter for name, parameter in model.named_parameters() if is_adapter(name)}
    save_adapter(model, weights, str(model_folder), folder, make_card(TASK, SPEC, {"run": "r"}), README)
    artifacts.publish(folder, str(folder), FINGERPRINT, {"base": artifacts.model_fingerprint(model_folder)})
    return model, folder


# Which layers


@pytest.mark.parametrize(
    "lora",
    [
        EVERYWHERE,
        LoraConfig(),
        LoraConfig(language=("q_proj", "down_proj")),
        LoraConfig(language=(), vision=("qkv",)),
        LoraConfig(language=("up_proj",), vision=("proj",)),
    ],
    ids=["everywhere", "language", "some of language", "some of vision", "some of both"],
)
def test_the_layers_asked_for_get_an_adapter_and_no_others(model_folder: Path, lora: LoraConfig) -> None:
    model = load_model(model_folder, "float32")
    expected = adapted_layers(model, lora)
    assert all("visual.blocks." in name for name in expected["vision"]) and not any("visual" in name for name in expected["language"])
    if lora.language == "all":
        assert len(expected["language"]) == 2 * 7  # layers x (q, k, v, o, gate, up, down)
    add_adapters(model, lora, 0)
    assert sorted(name for name, module in model.named_modules() if isinstance(module, LoraLayer)) == sorted(
        expected["language"] + expected["vision"]
    )


def test_nothing_but_the_adapters_learns_and_each_at_the_rate_of_its_part(model_folder: Path) -> None:
    model = adapted(model_folder)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        name for name, _ in model.named_parameters() if is_adapter(name)
    }
    training = TrainingConfig(lora=EVERYWHERE)
    groups = build_parameter_groups(model, OptimiserConfig(), training.frozen_parts)
    rates = {id(parameter): group["peak_lr"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            assert rates[id(parameter)] == (2e-6 if "visual." in name else 1e-5), name


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(model_folder: Path) -> None:
    model = load_model(model_folder, "float32")
    with pytest.raises(ModelError, match=r"training.lora.vision: the model has no linear layers q_proj there; it has .*proj, qkv"):
        add_adapters(model, LoraConfig(vision=("q_proj",)), 0)


def test_adapters_begin_with_no_effect_and_at_the_same_weights_for_a_seed(model_folder: Path, batch: dict[str, torch.Tensor]) -> None:
    first, again, other = adapted(model_folder), adapted(model_folder), adapted(model_folder, seed=1)
    torch.testing.assert_close(logits(first, batch), logits(load_model(model_folder, "float32"), batch), rtol=0, atol=0)
    weights = dict(first.named_parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in again.named_parameters())
    assert any(not torch.equal(weight, weights[name]) for name, weight in other.named_parameters())


# Gradients


def test_every_adapter_of_both_towers_gets_its_gradient_with_checkpointing_as_without(
    model_folder: Path, batch: dict[str, torch.Tensor]
) -> None:
    gradients: dict[bool, dict[str, torch.Tensor]] = {}
    for checkpointing in (True, False):
        model = adapted(model_folder)
        disturb(model)
        if checkpointing:
            recompute_activations(model)
            assert all(block.gradient_checkpointing for block in [*model.model.visual.blocks, *model.model.language_model.layers])
        SupervisedLoss(model.train())(**batch).backward()
        gradients[checkpointing] = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("visual." in name for name in gradients[True]) and any("language_model." in name for name in gradients[True])
    for name, gradient in gradients[True].items():
        assert gradient is not None and gradient.any(), name
        torch.testing.assert_close(gradient, gradients[False][name], rtol=1e-6, atol=1e-7)


# Files


def test_a_merged_adapter_answers_as_the_adapted_model_and_as_peft_loads_it(
    saved: tuple[Any, Path], model_folder: Path, batch: dict[str, torch.Tensor]
) -> None:
    model, folder = saved
    expected = logits(model, batch)
    assert float((expected - logits(load_model(model_folder, "float32"), batch)).abs().max()) > 0.1
    by_peft = peft.PeftModel.from_pretrained(load_model(model_folder, "float32"), str(folder))
    torch.testing.assert_close(logits(by_peft, batch), expected, rtol=0, atol=0)
    merged = merge_adapter(folder, str(model_folder))
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-4, atol=1e-4)
    assert merged.state_dict().keys() == load_model(model_folder, "float32").state_dict().keys()


def test_an_adapter_is_no_more_than_its_own_tensors_and_names_its_base(saved: tuple[Any, Path], model_folder: Path) -> None:
    _, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == [
        *(artifacts.MARKER, MODEL_CARD, "adapter_config.json", "adapter_model.safetensors", TASK_CARD),
    ]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8, str(model_folder))
    assert read_card(folder)[0] == TASK


def test_an_adapter_of_another_model_does_not_fit(saved: tuple[Any, Path], tmp_path: Path, model_folder: Path) -> None:
    _, folder = saved
    copy = shutil.copytree(folder, tmp_path / "adapter")
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    with pytest.raises(ModelError, match=rf"{copy}: this adapter does not fit the model {model_folder}"):
        merge_adapter(copy, str(model_folder))


# Export


def test_an_exported_adapter_is_a_whole_model(
    saved: tuple[Any, Path], tmp_path: Path, batch: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = saved
    assert main(["export", str(folder), "--out", str(tmp_path / "merged")]) == 0
    assert "merged the adapter" in capsys.readouterr().out
    artifacts.verify(tmp_path / "merged")
    assert artifacts.model_fingerprint(tmp_path / "merged") == FINGERPRINT
    assert read_card(tmp_path / "merged")[0] == TASK
    assert (tmp_path / "merged" / MODEL_CARD).read_text() == README, "with the scores, which are nowhere else in the adapter"
    ChatAdapter(tmp_path / "merged", SPEC)
    torch.testing.assert_close(logits(load_model(tmp_path / "merged", "float32"), batch), logits(model, batch), rtol=1e-4, atol=1e-4)
    # And what was exported can be exported: a copy, byte for byte.
    assert main(["export", str(tmp_path / "merged"), "--out", f"file://{tmp_path}/copy"]) == 0
    assert artifacts.read_marker(str(tmp_path / "copy")) == artifacts.read_marker(str(tmp_path / "merged"))
    artifacts.verify(tmp_path / "copy")


def test_a_folder_without_a_model_card_gets_one_made_of_its_task_card(saved: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = saved
    old = shutil.copytree(folder, tmp_path / "adapter", ignore=shutil.ignore_patterns(MODEL_CARD, artifacts.MARKER))
    artifacts.publish(old, str(old), FINGERPRINT, {})
    export_model(str(old), str(tmp_path / "merged"))
    (tmp_path / "merged" / artifacts.MARKER).unlink()
    (tmp_path / "merged" / MODEL_CARD).unlink()
    artifacts.publish(tmp_path / "merged", str(tmp_path / "merged"), FINGERPRINT, {})
    export_model(str(tmp_path / "merged"), str(tmp_path / "copy"))
    assert (tmp_path / "copy" / MODEL_CARD).read_text() == model_card(TASK, SPEC, {"run": "r"})
    assert MODEL_CARD in artifacts.read_marker(str(tmp_path / "copy"))["parts"]


def test_a_flipped_byte_another_base_and_a_full_target_are_refused_by_name(
    saved: tuple[Any, Path], tmp_path: Path, model_folder: Path
) -> None:
    _, folder = saved
    copy = shutil.copytree(folder, tmp_path / "adapter")
    weights = copy / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{weights}: its bytes have changed"):
        export_model(str(copy), str(tmp_path / "out"))
    other = shutil.copytree(model_folder, tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    with pytest.raises(ModelError, match=rf"was trained on the model .*{other} is .*--base"):
        export_model(str(folder), str(tmp_path / "out"), str(other))
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=rf"{tmp_path}/full: is not empty"):
        export_model(str(folder), str(tmp_path / "full"))


def test_a_base_that_is_no_adapter_and_a_stage_folder_are_explained(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"is no adapter .*leave --base out"):
        export_model(str(model_folder), str(tmp_path / "out"), str(model_folder))
    (tmp_path / "stage" / "final").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"is a stage, not a model; give .*/stage/final"):
        export_model(str(tmp_path / "stage"), str(tmp_path / "out"))
    with pytest.raises(ArtifactError, match=r"not complete \(no COMPLETE.json\)"):
        export_model(str(model_folder), str(tmp_path / "out"))
