"""The run file: defaults, mistakes, overrides, paths. What the recipes in configs/ hold is in test_recipes.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from rbft.config import OptimiserConfig, RunConfig, TrainingConfig, VideoConfig, dump_config, load_config, load_task
from rbft.errors import ConfigError

TASK = """
name: doors
labels: [open, closed]
persona: carpenter
dimensions: [{heading: Doors, describe: how many}]
question: Is the door open or closed?
"""
RUN = """
name: doors
task: tasks/doors.yaml
data: {folder: ../videos}
model: {path: ../model}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "configs" / "run.yaml"
    (path.parent / "tasks").mkdir(parents=True)
    (path.parent / "tasks" / "doors.yaml").write_text(TASK)
    path.write_text(RUN)
    return path


def mistake(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, list(overrides))
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text or "--set" in text
    return text


# Defaults


def test_the_defaults_are_the_papers(run_file: Path) -> None:
    config = load_config(run_file)
    # Paper 4.1; readings, 1, 2, 5, 20.
    for optimiser in (config.training.rationale, config.training.classify):
        assert (optimiser.lr_language, optimiser.lr_vision) == (1e-5, 2e-6)
        assert (optimiser.betas, optimiser.eps, optimiser.weight_decay) == ((0.9, 0.999), 1e-8, 0.1)
        assert (optimiser.warmup_ratio, optimiser.max_grad_norm) == (0.03, 1.0)
    training = config.training
    assert (training.num_workers, training.micro_batch_size, training.accumulation_steps, training.global_batch_size) == (8, 2, 1, 16)
    assert (training.rationale_epochs, training.classify_epochs) == (1, 1)
    assert training.gradient_checkpointing
    assert not config.evaluation.takes_unlabelled
    assert training.zero_stage == 2
    assert (config.video.fps, config.video.max_pixels, config.video.min_frames) == (1.0, 360 * 420, 4)
    assert (config.generation.temperature, config.generation.max_new_tokens) == (0.0, 512)
    assert config.data.fractions == {"train": 0.8, "test": 0.2}


def test_the_spec_of_the_frames_is_the_video_section_without_its_limits(run_file: Path) -> None:
    video = load_config(run_file, ["video.fps=2", "video.backend=pyav", "video.max_frames=32"]).video
    spec = video.spec()
    assert (spec.fps, spec.backend, spec.max_frames, spec.max_pixels) == (2.0, "pyav", 32, 151_200)
    assert VideoConfig(timeout_s=1).spec() == VideoConfig().spec()


def test_a_configuration_is_frozen(run_file: Path) -> None:
    config = load_config(run_file)
    with pytest.raises(ValidationError):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.training.num_workers = 1  # type: ignore[misc]


# Mistakes


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainig.num_workers=1", "unknown key trainig; did you mean training?"),
        ("training.num_worker=1", "unknown key training.num_worker; did you mean training.num_workers?"),
        ("training.rationale.lr_languag=1", "unknown key training.rationale.lr_languag; did you mean training.rationale.lr_language?"),
        ("max_pixels=784", "unknown key max_pixels; did you mean video.max_pixels?"),
        ("training.lr_vision=1", "did you mean training.rationale.lr_vision or training.classify.lr_vision?"),
        ("task.dimensions=[{headin: a, describe: b}]", "unknown key task.dimensions.0.headin; did you mean task.dimensions.0.heading?"),
        ("serve.colour=red", "unknown key serve.colour; known keys there: host, port"),
    ],
)
def test_an_unknown_key_is_refused_with_its_path_and_what_was_meant(run_file: Path, override: str, expected: str) -> None:
    assert expected in mistake(run_file, override)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("video=3", "video must be a mapping of keys to values (got 3)"),
        ("video.fps=fast", "video.fps: "),
        ("video.fps=0", "video.fps: "),
        ("video.fps=.inf", "video.fps: "),
        ("video.max_frames=7", "video.max_frames: "),
        ("video.max_frames=2", "min_frames and min_pixels must not be larger"),
        ("name=2024-01-02", "name must be text"),
        ("task.labels=[yes, no]", "task.labels.0 must be text, and YAML reads this as True; put it in quotes"),
        ("data.manifest=m.parquet", "give exactly one of manifest, annotations, folder, smarthome, multihateclip"),
        ("data.folder=", "give exactly one of"),
        ("data.columns={label: kind}", "columns says how to read annotations"),
        ("data.video_root=/v", "video_root has no meaning beside folder"),
        ("data.fractions={train: 0.8, test: 0.3}", "add up to 1"),
        ("data.fractions={training: 0.8, test: 0.2}", "fractions must be of"),
        ("engine.tensor_parallel_size=2", "set num_gpus to 2"),
        ("engine.resources={spot: 1, GPU: 1}", "engine.resources: must not hold GPU; num_cpus and num_gpus say that"),
        ("training.resources={on_demand: 0}", "training.resources.on_demand"),
        ("generation.max_new_tokens=40000", "leaves no room for a video"),
        ("model.attention=eager", "set training.batching to padded, or model.attention to sdpa"),
        ("evaluation.systems=[rb-ft, rb-ft]", "systems must be distinct"),
        ("evaluation.systems=[]", "evaluation: names no system to evaluate; give systems, api_models or video_classifiers"),
        ("evaluation.systems=[rbft]", "evaluation.systems.0: "),
        ("training.deepspeed.zero_optimization.stage=4", "must be 0, 1, 2 or 3"),
        ("training.deepspeed={}", "stage 0 cannot add up bf16 gradients in fp32"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_path(run_file: Path, override: str, expected: str) -> None:
    assert expected in mistake(run_file, override)


@pytest.mark.parametrize("key", ["name", "task", "data", "model"])
def test_what_has_no_default_must_be_given(run_file: Path, key: str) -> None:
    assert f"{key} is missing; add it" in mistake(run_file, f"{key}=null")


def test_all_mistakes_are_told_at_once(run_file: Path) -> None:
    text = mistake(run_file, "vidoe.fps=1", "seed=-1")
    assert "unknown key vidoe; did you mean video?" in text
    assert "seed: " in text


def test_a_key_that_stands_twice_is_refused_with_its_line(run_file: Path) -> None:
    run_file.write_text(RUN + "training: {num_workers: 1}\ntraining: {micro_batch_size: 1}\n")
    text = mistake(run_file)
    assert "key 'training' stands twice" in text
    assert "line 7" in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "must be a mapping of keys to values, is NoneType"),
        (b"- name: x", "must be a mapping of keys to values, is list"),
        (b"name: [x", "not valid YAML"),
        (b"name: 2024-13-45", "not valid YAML"),
        (b"name: \xff\xfe", "cannot be read"),
        (b"? [a, b]\n: c", "not valid YAML"),
        (b"!!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_run_file_is_refused_by_name(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    assert expected in mistake(path)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    assert "no such file" in mistake(tmp_path / "none.yaml")
    assert "cannot be read" in mistake(tmp_path)


def test_a_mistake_in_the_task_file_names_that_file(run_file: Path) -> None:
    task_file = run_file.parent / "tasks" / "doors.yaml"
    task_file.write_text(TASK.replace("persona", "person"))
    assert "(task file tasks/doors.yaml): task.persona is missing; add it; unknown key task.person; did you mean task.persona?" in mistake(
        run_file
    )
    with pytest.raises(ConfigError, match=re.escape(f"{task_file}: persona is missing")):
        load_task(task_file)
    task_file.unlink()
    with pytest.raises(ConfigError, match=re.escape(f"{task_file}: no such file")):
        load_config(run_file)


# The global batch


@given(global_batch=st.integers(1, 300), num_workers=st.integers(1, 40), micro_batch=st.integers(1, 20), min_workers=st.integers(1, 40))
def test_a_stage_can_be_trained_by_those_counts_of_workers_that_divide_its_batch(
    global_batch: int, num_workers: int, micro_batch: int, min_workers: int
) -> None:
    global_batch *= num_workers * micro_batch
    fields = {"global_batch_size": global_batch, "num_workers": num_workers, "micro_batch_size": micro_batch}
    assert TrainingConfig(**fields).worker_counts == (num_workers,)
    if min_workers > num_workers:
        with pytest.raises(ValidationError, match=f"min_workers {min_workers} is more than num_workers {num_workers}"):
            TrainingConfig(**fields, min_workers=min_workers)
        return
    training = TrainingConfig(**fields, min_workers=min_workers)
    assert training.worker_counts[-1] == num_workers and training.worker_counts[0] >= min_workers
    for count in range(1, num_workers + 2):
        if count in training.worker_counts:
            with_count = training.for_workers(count)
            assert with_count.accumulation_steps * count * micro_batch == global_batch
        else:
            with pytest.raises(ConfigError, match=f"{count} workers are not among those that are possible"):
                training.for_workers(count)


@given(global_batch=st.integers(1, 300), num_workers=st.integers(1, 40), micro_batch=st.integers(1, 20))
def test_a_global_batch_that_does_not_divide_is_refused_with_choices_that_do(global_batch: int, num_workers: int, micro_batch: int) -> None:
    fields = {"global_batch_size": global_batch, "num_workers": num_workers, "micro_batch_size": micro_batch}
    assume(global_batch % (num_workers * micro_batch) != 0)
    with pytest.raises(ValidationError) as caught:
        TrainingConfig(**fields)
    message = caught.value.errors()[0]["msg"]
    offered = message.split("it would with ")[1].split("; or with ")
    assert offered
    for choice in offered:
        field, numbers = choice.split(" ", 1)
        for number in re.findall(r"\d+", numbers):
            changed = TrainingConfig(**{**fields, field: int(number)})
            assert changed.accumulation_steps * changed.num_workers * changed.micro_batch_size == changed.global_batch_size


def test_the_choices_are_named_in_the_message(run_file: Path) -> None:
    text = mistake(run_file, "training.num_workers=3")
    assert "16 does not divide by num_workers 3 x micro_batch_size 2" in text
    assert "it would with global_batch_size 12 or 18; or with num_workers 1, 2, 4 or 8" in text


def test_a_huge_global_batch_is_refused_in_no_time() -> None:
    with pytest.raises(ValidationError, match="does not divide"):
        TrainingConfig(global_batch_size=10**15, num_workers=3, micro_batch_size=1)


# DeepSpeed


@pytest.mark.parametrize("key", ["optimizer", "scheduler"])
def test_a_deepspeed_block_that_would_drop_the_two_rates_is_refused(run_file: Path, key: str) -> None:
    expected = f"deepspeed.{key} must not be given: DeepSpeed would drop the two learning rates"
    assert expected in mistake(run_file, f"training.deepspeed.{key}={{type: AdamW}}")


def test_every_deepspeed_key_that_this_project_sets_is_refused() -> None:
    from rbft.training.deepspeed_engine import deepspeed_config

    training = TrainingConfig()
    ours = deepspeed_config(training, 1.0).keys() - training.deepspeed.keys()
    assert "gradient_clipping" in ours
    for key in ours:
        with pytest.raises(ValidationError, match=f"deepspeed.{key} must not be given"):
            TrainingConfig(deepspeed={**training.deepspeed, key: {}})


def test_other_deepspeed_keys_pass_through(run_file: Path) -> None:
    training = load_config(run_file, ["training.deepspeed.zero_optimization={stage: 3, overlap_comm: true}"]).training
    assert training.zero_stage == 3
    assert training.deepspeed == {"zero_optimization": {"stage": 3, "overlap_comm": True}}


def test_a_deepspeed_file_is_read_beside_the_run_file_and_checked_as_a_mapping_is(run_file: Path, tmp_path: Path) -> None:
    recipe = run_file.parent / "recipes" / "mine.yaml"
    recipe.parent.mkdir()
    recipe.write_text("zero_optimization: {stage: 3}\n")
    raw = yaml.safe_load(run_file.read_text())
    run_file.write_text(yaml.safe_dump(raw | {"training": {"deepspeed": "recipes/mine.yaml"}}))
    assert load_config(run_file).training.deepspeed == {"zero_optimization": {"stage": 3}}
    assert load_config(run_file, ["training.deepspeed.zero_optimization.stage=2"]).training.zero_stage == 2
    recipe.write_text("optimizer: {type: AdamW}\n")
    assert "deepspeed.optimizer must not be given" in mistake(run_file)
    recipe.unlink()
    with pytest.raises(ConfigError, match=f"{recipe}: no such file"):
        load_config(run_file)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.deepspeed.zero_optimization.offload_param={device: disk}", "offload_param must be like {device: cpu}, or nvme or none"),
        ("training.deepspeed.zero_optimization.offload_optimizer=cpu", "offload_optimizer must be like {device: cpu}"),
        ("training.freeze=[vision, merger, language, embeddings]", "nothing would learn"),
        ("training.freeze=[tower]", "training.freeze.0: Input should be 'vision'"),
        ("training.lora={language: []}", "lora has no layers to adapt"),
        ("training={lora: {vision: all}, freeze: [vision]}", "freeze names vision, and lora.vision adapts it"),
        ("training={num_gpus: 0, lora: {quantised_base: nf4}}", "lora.quantised_base needs GPUs"),
        ("training={lora: {quantised_base: nf4}, deepspeed: {zero_optimization: {stage: 3}}}", "4-bit weights cannot be partitioned"),
    ],
)
def test_what_cannot_be_trained_is_refused(run_file: Path, override: str, expected: str) -> None:
    assert expected in mistake(run_file, override)


def test_the_parts_without_anything_that_learns_follow_from_lora_and_freeze() -> None:
    assert TrainingConfig().frozen_parts == frozenset()
    assert TrainingConfig(freeze=("vision", "merger")).frozen_parts == {"vision", "merger"}
    assert TrainingConfig.model_validate({"lora": {}}).frozen_parts == {"vision", "merger", "embeddings"}
    assert TrainingConfig.model_validate({"lora": {"vision": ["qkv"]}}).frozen_parts == {"merger", "embeddings"}


# Overrides, paths, the way back


def test_overrides_are_read_as_yaml_and_the_last_one_counts(run_file: Path) -> None:
    overrides = ["seed=1", "seed=2", "training.rationale.lr_language=1e-4", "evaluation.systems=[zero-shot, rb-ft]", "engine.block_size=32"]
    config = load_config(run_file, [*overrides, "engine.block_size=null"])
    assert config.seed == 2
    assert config.training.rationale == OptimiserConfig(lr_language=1e-4)
    assert config.training.classify == OptimiserConfig()
    assert config.evaluation.systems == ("zero-shot", "rb-ft")
    assert config.engine.block_size is None


def test_an_override_reaches_into_the_task_file(run_file: Path) -> None:
    task = load_config(run_file, ["task.persona=locksmith"]).task
    assert (task.persona, task.labels) == ("locksmith", ("open", "closed"))


@pytest.mark.parametrize("override", ["seed", "=1", ".seed=1", "training..seed=1", "name.first=x", "data.folder.x=1", "seed=[1"])
def test_an_override_that_is_none_is_refused(run_file: Path, override: str) -> None:
    assert mistake(run_file, override).startswith(f"--set {override}: ")


def test_an_empty_section_means_its_defaults(run_file: Path) -> None:
    run_file.write_text(RUN + "training:\n  # num_workers: 4\n")
    assert load_config(run_file).training == TrainingConfig()
    assert load_config(run_file, ["training.num_workers=4"]).training.num_workers == 4


def test_paths_in_a_file_are_relative_to_it_and_those_of_overrides_to_where_the_command_is_given(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "windows.yaml").write_text(TASK.replace("doors", "windows"))
    monkeypatch.chdir(elsewhere)
    config = load_config(run_file)
    assert config.data.folder == str(tmp_path / "videos")
    assert config.model.path == str(tmp_path / "model")
    overrides = ["data.folder=clips", "model.path=./other", "task=windows.yaml", "evaluation.masking.boxes=boxes.parquet"]
    config = load_config(run_file, overrides)
    assert config.data.folder == str(elsewhere / "clips")
    assert config.model.path == str(elsewhere / "other")
    assert config.evaluation.masking.boxes == str(elsewhere / "boxes.parquet")
    assert config.task.name == "windows"


def test_uris_absolute_paths_and_hub_names_stay_as_they_are(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(run_file, ["data={manifest: s3://bucket/m.parquet, video_root: /videos}", "model.path=Qwen/Qwen2-VL-7B-Instruct"])
    assert (config.data.manifest, config.data.video_root) == ("s3://bucket/m.parquet", "/videos")
    assert config.model.path == "Qwen/Qwen2-VL-7B-Instruct"
    monkeypatch.setenv("HOME", "/somewhere")
    assert load_config(run_file, ["model.path=~/model"]).model.path == "/somewhere/model"


@pytest.mark.parametrize("option", ["training.scratch", "evaluation.masking.boxes"])
def test_what_is_read_as_a_local_path_is_not_to_be_a_store(run_file: Path, option: str) -> None:
    with pytest.raises(ConfigError, match=rf"{option}.*give a path|{option}.*must be a path"):
        load_config(run_file, [f"{option}=s3://bucket/place"])
    load_config(run_file, [f"{option}=/scratch/place"])


def test_a_run_lies_below_the_output_folder(run_file: Path) -> None:
    assert load_config(run_file).run_dir == "runs/doors"
    assert load_config(run_file, ["output_dir=s3://bucket/runs/"]).run_dir == "s3://bucket/runs/doors"


def test_what_is_dumped_loads_back_equal(run_file: Path, tmp_path: Path) -> None:
    overrides = [
        "task.persona='Schlüsseldienst: 24h'",
        "training.rationale.lr_language=3e-5",
        "evaluation.systems=[rb-ft]",
        "engine.block_size=32",
    ]
    config = load_config(run_file, [*overrides, "training.deepspeed.zero_optimization.stage=3"])
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(dump_config(config))
    assert load_config(dumped) == config
    assert RunConfig.model_validate(yaml.safe_load(dumped.read_text())) == config


def test_validation_is_off_until_it_is_said_when(run_file: Path) -> None:
    assert not load_config(run_file).training.validation.is_on
    assert load_config(run_file, ["training.validation.every_epochs=0.5"]).training.validation.is_on
    assert "every_steps or every_epochs, not both" in mistake(run_file, "training.validation={every_steps: 5, every_epochs: 1}")
    assert "patience counts validations, and there are none" in mistake(run_file, "training.validation.patience=2")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), 0),
        (("training.replay_share=0.2",), 64),
        (("training.replay_share=0.2", "evaluation.rationale_check=0"), 0),
        (("training.replay_share=0.2", "evaluation.rationale_check=8"), 8),
        (("evaluation.rationale_check=8",), 8),
    ],
)
def test_what_replay_is_worth_is_measured_unless_it_is_said_not_to_be(run_file: Path, overrides: tuple[str, ...], expected: int) -> None:
    assert load_config(run_file, list(overrides)).num_rationales_checked == expected


def test_further_seeds_are_others_than_the_runs_own(run_file: Path) -> None:
    assert load_config(run_file, ["training.seeds=[1,2]"]).training.seeds == (1, 2)
    for override in ("training.seeds=[0,1]", "training.seeds=[1,1]"):
        assert "training.seeds are further ones, all different, beside seed 0" in mistake(run_file, override)


# API models


def test_a_known_api_model_needs_its_name_only(run_file: Path) -> None:
    config = load_config(run_file, ["evaluation.api_models=[gpt-4o, {name: gemini-2.5-pro, max_concurrency: 2, max_new_tokens: 512}]"])
    gpt, gemini = config.evaluation.api_models
    assert (gpt.url, gpt.model, gpt.api_key_env) == ("https://api.openai.com/v1", "gpt-4o", "OPENAI_API_KEY")
    assert (gemini.url, gemini.api_key_env) == ("https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY")
    assert (gemini.max_concurrency, gemini.max_new_tokens) == (2, 512)
    assert gpt.price_per_million_input_tokens is gemini.price_per_million_output_tokens is None
    assert config.evaluation.all_systems[:3] == ("gpt-4o", "gemini-2.5-pro", "zero-shot")
    assert config.api_cache == "runs/api-cache"
    run_file.with_name("again.yaml").write_text(dump_config(config))
    assert load_config(run_file.with_name("again.yaml")).evaluation == config.evaluation


@pytest.mark.parametrize("name", ["gpt-4.1", "gpt-4o", "gpt-4o-mini", "gemini-2.5-flash", "gemini-2.5-pro"])
def test_the_papers_api_models_are_known(run_file: Path, name: str) -> None:
    (model,) = load_config(run_file, ["evaluation.systems=[]", f"evaluation.api_models=[{name}]"]).evaluation.api_models
    assert model.model == name and model.url.startswith("https://")


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ("[gpt-5-nano]", "'gpt-5-nano' is none of the models we know (gpt-4.1, "),
        ("[{name: rb-ft, url: http://a/v1, model: m}]", "name 'rb-ft' is that of a system which is trained here"),
        ("[gpt-4o, {name: gpt-4o, max_frames: 8}]", "must have distinct names; 'gpt-4o' stands twice"),
        ("[{name: gpt-4o, price_per_million_input_tokens: 1}]", "give both prices"),
        ("[{name: gpt-4o, extra_body: {logprobs: true}}]", "set top_logprobs"),
        ("[{name: gpt-4o, api_key: sk-123}]", "evaluation.api_models.0.api_key looks like a secret"),
        ("[{name: mine, url: http://a/v1}]", "evaluation.api_models.0.model is missing"),
    ],
)
def test_an_api_model_that_cannot_be_meant_is_refused(run_file: Path, models: str, expected: str) -> None:
    assert expected in mistake(run_file, f"evaluation.api_models={models}")


def test_stage_1_is_no_path_and_a_folder_is_one(run_file: Path) -> None:
    assert load_config(run_file, ["serve.rationale_model=stage-1"]).serve.rationale_model == "stage-1"
    assert load_config(run_file, ["serve.rationale_model=models/stage-1"]).serve.rationale_model == str(Path("models/stage-1").resolve())
    assert load_config(run_file, ["serve.rationale_model=s3://models/writer"]).serve.rationale_model == "s3://models/writer"
