"""The plan: counts from the data, tokens from the same arithmetic as the frames, memory from the model's real parameters."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from miniature.write import encode_mp4
from rbft.cli import main
from rbft.config import RunConfig, TrainingConfig, load_config
from rbft.data.manifest import write_manifest
from rbft.models.shape import read_model_shape
from rbft.plan import InferenceStep, Plan, Range, TrainingStep, build_plan, format_plan
from rbft.records import Clip, Example
from rbft.training.memory import SampleSize, TrainingMemory, training_memory
from rbft.video.sampling import video_tokens
from tests.tiny_models import make_tiny_model

NUM_TRAIN, NUM_UNLABELLED, NUM_TEST = 35, 6, 10


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    # 10 frames at 1 FPS of 112 x 84: 5 x 4 x 3 tokens.
    (folder / "clip.mp4").write_bytes(encode_mp4(np.zeros((10, 112, 84, 3), dtype=np.uint8)))
    (folder / "broken.mp4").write_bytes(b"nothing")
    examples = [Example(f"train-{i}", "clip.mp4", "normal" if i % 3 else "abnormal", "train") for i in range(NUM_TRAIN)]
    examples += [Example(f"unlabelled-{i}", "broken.mp4", None, "train", context="a title" * 20) for i in range(NUM_UNLABELLED)]
    examples += [Example(f"test-{i}", "clip.mp4", "normal", "test") for i in range(NUM_TEST)]
    write_manifest(examples, folder / "manifest.parquet")
    return folder / "manifest.parquet"


def config_of(repository: Path, manifest: Path, model: Path, *overrides: str) -> RunConfig:
    return load_config(
        repository / "configs" / "miniature.yaml",
        [f"data.manifest={manifest}", f"model.path={model}", "video.max_frames=16", "video.max_pixels=12544", *overrides],
    )


def step(plan: Plan, name: str) -> TrainingStep:
    found = next(step for step in plan.steps if name in step.name)
    assert isinstance(found, TrainingStep)
    return found


@pytest.fixture(scope="module")
def plan(repository: Path, manifest: Path, tiny_model: Path) -> Plan:
    return build_plan(config_of(repository, manifest, tiny_model))


def test_steps_and_samples_follow_from_the_manifest(plan: Plan) -> None:
    assert plan.counts == {"train": {"abnormal": 12, "normal": 23, "unlabelled": 6}, "test": {"normal": 10}}
    assert [step.name for step in plan.steps] == [
        "generate rationales",
        "train direct-sft-1 (labels)",
        "train direct-sft-2 (labels)",
        "train rb-ft, stage 1 (rationales)",
        "train rb-ft, stage 2 (labels)",
        "evaluate zero-shot, direct-sft-1, direct-sft-2, rb-ft",
    ]
    # 35 labelled samples in batches of 16 are 3 steps an epoch.
    for name, epochs, num_steps in (("stage 1", 1, 3), ("stage 2", 1, 3), ("direct-sft-1", 1, 3), ("direct-sft-2", 2, 6)):
        found = step(plan, name)
        assert (found.num_samples, found.epochs, found.num_steps) == (NUM_TRAIN, epochs, num_steps)
    generate, evaluate = plan.steps[0], plan.steps[-1]
    assert isinstance(generate, InferenceStep)
    assert isinstance(evaluate, InferenceStep)
    assert (generate.num_videos, generate.num_passes) == (NUM_TRAIN, 1)
    assert (evaluate.num_videos, evaluate.num_passes) == (NUM_TEST, 4)


def test_the_number_of_steps_is_the_one_that_training_takes(plan: Plan) -> None:
    from rbft.training.order import global_batches

    for found in (found for found in plan.steps if isinstance(found, TrainingStep)):
        assert found.num_samples is not None
        assert found.num_steps == len(global_batches(found.num_samples, plan.config.training.global_batch_size, found.epochs, seed=0))


def test_unlabelled_videos_join_generation_and_stage_1_only_where_asked_for(repository: Path, manifest: Path, tiny_model: Path) -> None:
    plan = build_plan(config_of(repository, manifest, tiny_model, "evaluation.systems=[rb-ft-unlabelled]"))
    assert isinstance(plan.steps[0], InferenceStep)
    assert plan.steps[0].num_videos == NUM_TRAIN + NUM_UNLABELLED
    assert step(plan, "stage 1").num_samples == NUM_TRAIN + NUM_UNLABELLED
    assert step(plan, "stage 2").num_samples == NUM_TRAIN


def test_repeated_classes_replayed_rationales_and_seeds_are_counted(repository: Path, manifest: Path, tiny_model: Path) -> None:
    more = ("training.class_balance=sampling", "training.replay_share=0.2", "training.seeds=[1,2]")
    found = build_plan(config_of(repository, manifest, tiny_model, *more))
    # Both classes stand 23 times; a fifth of RB-FT's samples are rationales.
    assert step(found, "direct-sft-1").num_samples == 46
    assert step(found, "rb-ft, stage 2").num_samples == 46 + 12
    assert any("done 3 times, once a seed" in note for note in found.notes)


def test_a_system_with_rates_of_its_own_says_so(repository: Path, manifest: Path, tiny_model: Path) -> None:
    own = "training.per_system={rb-ft: {classify: {lr_language: 3.0e-4, lr_vision: 6.0e-5}}}"
    lines = format_plan(build_plan(config_of(repository, manifest, tiny_model, own))).splitlines()
    rates = {
        line.split("train ")[1]: lines[number + 1].partition("optimiser steps, ")[2]
        for number, line in enumerate(lines)
        if "train " in line
    }
    assert rates["rb-ft, stage 2 (labels)"] == "learning rate 0.0003, in the vision tower 6e-05"
    assert rates["rb-ft, stage 1 (rationales)"] == rates["direct-sft-1 (labels)"] != rates["rb-ft, stage 2 (labels)"]


def test_only_the_systems_asked_for_are_planned(repository: Path, manifest: Path, tiny_model: Path) -> None:
    plan = build_plan(config_of(repository, manifest, tiny_model, "evaluation.systems=[zero-shot, direct-sft-2]"))
    assert [step.name for step in plan.steps] == ["train direct-sft-2 (labels)", "evaluate zero-shot, direct-sft-2"]


def test_tokens_are_those_of_a_sample_as_training_encodes_it(plan: Plan, tiny_model: Path) -> None:
    from rbft.models.chat import ChatAdapter

    config = plan.config
    adapter = ChatAdapter(tiny_model, config.video.spec())
    clip = Clip(np.zeros((10, 112, 84, 3), dtype=np.uint8), tuple(map(float, range(10))), 1.0, 10.0, 1.0, "pyav")
    tokens = step(plan, "stage 2").tokens
    sample = adapter.encode(clip, config.task.question_messages(), "abnormal")
    assert tokens.video.typical == 60
    assert tokens.total.typical == len(sample.input_ids_L)
    assert tokens.answer == sample.num_supervised_tokens


def test_the_largest_sample_has_the_most_frames_of_the_largest_area_and_the_longest_context(plan: Plan) -> None:
    tokens = step(plan, "stage 1").tokens
    assert tokens.video.most == video_tokens(16, 112, 112, side=28, temporal_patch_size=2) == 8 * 4 * 4
    assert tokens.prompt.most >= tokens.prompt.typical + len("a title" * 20)
    assert tokens.answer == plan.config.generation.max_new_tokens


def test_a_sample_that_does_not_fit_the_engine_is_noted(repository: Path, manifest: Path, tiny_model: Path) -> None:
    plan = build_plan(config_of(repository, manifest, tiny_model, "engine.max_model_len=300"))
    assert any("engine.max_model_len is 300" in note for note in plan.notes)
    roomy = build_plan(config_of(repository, manifest, tiny_model, "engine.max_model_len=4096"))
    assert roomy.notes == ()


def test_an_empty_split_is_noted(repository: Path, manifest: Path, tiny_model: Path) -> None:
    plan = build_plan(config_of(repository, manifest, tiny_model, "evaluation.split=validation"))
    assert any("no labelled video is in the split validation" in note for note in plan.notes)


def test_what_is_not_there_is_said_to_be_unknown(repository: Path, tmp_path: Path) -> None:
    plan = build_plan(config_of(repository, tmp_path / "none.parquet", tmp_path / "none"))
    text = format_plan(plan)
    assert (plan.counts, plan.shape) == (None, None)
    assert step(plan, "stage 1").num_steps is None
    assert step(plan, "stage 1").memory is None
    assert "the number of videos and steps is unknown until the data is there" in text
    assert "memory is unknown until the model is there" in text
    assert "memory a worker: unknown" in text
    assert step(plan, "stage 1").tokens.prompt.typical > 0


def test_the_text_names_what_a_person_decides_on(plan: Plan) -> None:
    text = format_plan(plan)
    assert "train 41 (abnormal 12, normal 23, unlabelled 6), test 10 (normal 10)" in text
    assert "35 samples x 2 epochs = 6 optimiser steps" in text
    assert "global batch 16 = 2 workers x 8 x 1 accumulated; on CPU, fp32" in text
    assert "10 videos x 4 systems; 1 transformers engine, on CPU" in text
    assert "under ZeRO-2" in text


def test_a_cluster_run_names_its_gpus(repository: Path, tmp_path: Path) -> None:
    config = load_config(repository / "configs" / "smarthome-qwen2-vl-7b.yaml", [f"data.smarthome={tmp_path}", f"model.path={tmp_path}"])
    text = format_plan(build_plan(config))
    assert "8 vLLM engines, 8 GPUs" in text
    assert "global batch 16 = 8 workers x 2 x 1 accumulated; 8 GPUs, bf16" in text
    # 30 s of 1280 x 720 at 1 FPS are 30 frames of 504 x 280 pixels; the most are 128 frames of 151,200.
    assert "video 2,700 (at most 12,288)" in text


def test_planning_imports_neither_ray_nor_an_engine(repository: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from rbft.config import load_config; from rbft.plan import *;"
        f"plan = build_plan(load_config('configs/miniature.yaml', ['data.manifest={tmp_path}/m.parquet', 'model.path={tmp_path}']));"
        "print(len(format_plan(plan)) > 0, [name for name in ('ray', 'vllm', 'deepspeed', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert done.stdout.strip() == "True []", done.stderr


# Memory


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen2_vl"])
def test_the_shape_is_read_without_weights_and_counts_every_parameter_once(tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForImageTextToText

    folder = make_tiny_model(tmp_path / kind, kind)  # type: ignore[arg-type]
    model = AutoModelForImageTextToText.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    shape = read_model_shape(folder)
    assert shape.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    tower = {name: parameter.numel() for name, parameter in model.model.visual.named_parameters()}
    assert shape.num_vision_parameters == sum(count for name, count in tower.items() if not name.startswith("merger."))
    assert (shape.text.num_layers, shape.text.hidden_size, shape.text.intermediate_size) == (2, 64, 128)
    assert (shape.vision.num_layers, shape.vision.hidden_size, shape.vision.intermediate_size) == (2, 64, 128)
    assert (shape.token_side, shape.temporal_patch_size, shape.vocab_size) == (28, 2, 320)


def memory_of(tiny_model: Path, stage: int, num_workers: int = 8, precision: str = "bf16", **zero: object) -> tuple[float, float, float]:
    """Bytes a parameter of weights, gradients and optimiser."""
    shape = replace(read_model_shape(tiny_model), num_parameters=8_000_000_000)
    training = TrainingConfig.model_validate(
        {"precision": precision, "num_workers": num_workers, "deepspeed": {"zero_optimization": {"stage": stage, **zero}}}
    )
    memory = training_memory(shape, training, SampleSize(text=100, video=100, answer=10))
    return memory.parameters / 8e9, memory.gradients / 8e9, memory.optimiser / 8e9


def test_zero_partitions_what_its_paper_says(tiny_model: Path) -> None:
    # Rajbhandari et al. 2020, figure 1, with K = 12 bytes of optimiser; gradients are added up in fp32 here, at stage 1 beside
    # those in bf16.
    assert memory_of(tiny_model, 1) == (2, 6, 12 / 8)
    assert memory_of(tiny_model, 1, precision="fp32") == (4, 4 / 8, 12 / 8)
    assert memory_of(tiny_model, 2) == (2, 4 / 8, 12 / 8)
    assert memory_of(tiny_model, 3) == (2 / 8, 4 / 8, 12 / 8)
    assert memory_of(tiny_model, 0, precision="fp32") == (4, 4, 8)
    assert memory_of(tiny_model, 2, num_workers=1) == (2, 4, 12)


def test_offloaded_state_is_not_on_the_gpu(tiny_model: Path) -> None:
    # The step is taken in the CPU's memory, and gradients go there as they come.
    assert memory_of(tiny_model, 2, offload_optimizer={"device": "cpu"}) == (2, 0, 0)
    assert memory_of(tiny_model, 3, offload_optimizer={"device": "cpu"}, offload_param={"device": "nvme"}) == (0, 0, 0)
    assert memory_of(tiny_model, 2, offload_optimizer={"device": "none"}) == (2, 4 / 8, 12 / 8)


def test_activations_grow_with_samples_and_shrink_with_checkpointing(tiny_model: Path) -> None:
    shape = replace(read_model_shape(tiny_model), text=replace(read_model_shape(tiny_model).text, num_layers=28))

    def activations(num_video_tokens: int, **fields: object) -> int:
        training = TrainingConfig.model_validate({"global_batch_size": 32, **fields})
        return training_memory(shape, training, SampleSize(text=100, video=num_video_tokens, answer=10)).activations

    assert activations(1000) > activations(100)
    assert activations(1000, micro_batch_size=4) == pytest.approx(2 * activations(1000, micro_batch_size=2), rel=0.01)
    assert activations(1000, gradient_checkpointing=False) > 2 * activations(1000)


def test_adapters_and_frozen_parts_need_no_gradients_and_no_optimiser_for_the_rest(tiny_model: Path) -> None:
    shape = read_model_shape(tiny_model)
    assert sum(shape.num_of_part.values()) == shape.num_parameters
    sample = SampleSize(text=100, video=100, answer=10)

    def memory(**fields: object) -> TrainingMemory:
        return training_memory(shape, TrainingConfig.model_validate({"num_workers": 1, "global_batch_size": 2, **fields}), sample)

    whole, frozen, lora = memory(), memory(freeze=["vision", "embeddings"]), memory(lora={"rank": 4, "language": ["q_proj"]})
    left = shape.num_parameters - shape.num_of_part["vision"] - shape.num_of_part["embeddings"]
    assert (whole.parameters, frozen.parameters) == (2 * shape.num_parameters, 2 * shape.num_parameters)
    assert (frozen.gradients, frozen.optimiser) == (4 * left, 12 * left)
    # Two layers of the language model, 64 -> 4 -> 64.
    assert (lora.parameters - whole.parameters, lora.gradients, lora.optimiser) == (2 * 1024, 4 * 1024, 12 * 1024)
    assert whole.activations > frozen.activations > 0 and whole.activations > lora.activations > 0
    four_bits = memory(lora={"rank": 4, "language": ["q_proj"], "quantised_base": "nf4"})
    assert four_bits.parameters < 0.7 * lora.parameters


def test_where_it_does_not_fit_the_plan_says_what_to_change_and_what_that_comes_to(
    repository: Path, manifest: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(repository, manifest, tiny_model, "training.num_gpus=1", "training.gradient_checkpointing=false")
    roomy, tight, tiny = (build_plan(config, gpu_memory_bytes=mib << 20) for mib in (4096, 12, 1))
    assert step(roomy, "stage 1").remedies == ()
    assert "of 4.0 GiB, under ZeRO-2" in format_plan(roomy)
    found = step(tight, "stage 1")
    assert found.memory is not None and found.memory[1].total > 12 << 20
    assert found.remedies[0].change == "micro_batch_size: 1"
    *before, last = [remedy.memory.total for remedy in found.remedies]
    assert last <= 12 << 20 and all(total > 12 << 20 for total in before), "advice ends with the first that fits"
    assert f"  - {found.remedies[-1].change}: at most " in format_plan(tight)
    assert "and that is not enough" not in format_plan(tight)
    assert "and that is not enough: lower video.max_frames" in format_plan(tiny)
    # On the CPU nothing is said: its memory is not the workers' alone.
    assert build_plan(config_of(repository, manifest, tiny_model), gpu_memory_bytes=1).gpu_memory_bytes is None
    overrides = [f"data.manifest={manifest}", f"model.path={tiny_model}", "training.num_gpus=1", "training.lora={rank: 8}"]
    arguments = [argument for override in overrides for argument in ("--set", override)]
    assert main(["plan", "--config", str(repository / "configs" / "miniature.yaml"), *arguments, "--gpu-memory-gib", "0.001"]) == 0
    printed = capsys.readouterr().out
    assert "the largest samples do not fit" in printed and "of adapters of rank 8" in printed


def test_ranges_add_up() -> None:
    assert Range(1, 2) + Range(10, 20) == Range(11, 22)


def test_rationales_that_a_server_writes_take_clients_and_no_gpu(repository: Path, manifest: Path, tiny_model: Path) -> None:
    teacher = "teacher.server={url: http://127.0.0.1:9/v1, model: large}"
    text = format_plan(build_plan(config_of(repository, manifest, tiny_model, teacher, "engine.num_actors=2", "engine.num_gpus=1")))
    assert f"{NUM_TRAIN} videos; 2 clients, on CPU\n" in text
