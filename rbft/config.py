"""One YAML a run, read into frozen models. The defaults are the paper's, each with its source.

    load_config(path, overrides) -> RunConfig

An unknown key is refused with its path and a suggestion. Relative paths in a file are relative to that file. `--set a.b=c` overrides
one value (`c` is read as YAML). What a run would do with a configuration is in `rbft.plan`.

Sources: "paper 4.1" is the paper's "Implementation Details"; "readings N" is our reading of an open point (docs/readings.md).
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rbft.errors import ConfigError
from rbft.records import SPLITS, VideoSpec
from rbft.task import Task

_DEEPSPEED_KEYS_WE_SET = (
    *("optimizer", "scheduler", "gradient_clipping", "gradient_accumulation_steps"),
    *("train_batch_size", "train_micro_batch_size_per_gpu", "bf16", "fp16"),
)

SystemName = Literal["zero-shot", "direct-sft-1", "direct-sft-2", "rb-ft"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Section):
    """Where the videos and labels come from. Exactly one of `manifest`, `annotations`, `folder`, `smarthome`, `multihateclip`."""

    manifest: str | None = None
    """A manifest.parquet made by `rbft import`, or by hand to the schema of `rbft.records.manifest_schema`."""
    annotations: str | None = None
    """A CSV, TSV, JSONL or Parquet file, one row a video."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Manifest field -> column of `annotations`, where the names differ."""
    folder: str | None = None
    """A folder with one sub-folder a class."""
    smarthome: str | None = None
    """The folder with the SmartHome annotation files."""
    multihateclip: str | None = None
    """The folder with the MultiHateClip TSVs and text.json."""
    video_root: str | None = None
    """What relative video paths are relative to; by default the folder of the annotation file."""
    split_file: str | None = None
    """A published split: ids by split (readings, 17). Wins over fractions."""
    fractions: dict[str, float] = Field(default_factory=lambda: {"train": 0.8, "test": 0.2})
    """Used where the data carries no split (readings, 17: stratified, seeded 80/20)."""
    max_bad_fraction: float = Field(0.05, ge=0, le=1)
    """A job with a larger share of unusable videos fails at its end, with the list."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        sources = [name for name in ("manifest", "annotations", "folder", "smarthome", "multihateclip") if getattr(self, name)]
        if len(sources) != 1:
            raise ValueError(f"give exactly one of manifest, annotations, folder, smarthome, multihateclip; got {sources or 'none'}")
        unknown = sorted(set(self.fractions) - set(SPLITS))
        if unknown or abs(sum(self.fractions.values()) - 1) > 1e-6 or min(self.fractions.values()) < 0:
            raise ValueError(f"fractions must be of {SPLITS}, not negative, and add up to 1; got {self.fractions}")
        return self


class VideoConfig(_Section):
    """How a video becomes frames, and what a decode may cost."""

    fps: float = Field(1.0, gt=0)
    """Paper 4.1: 1 FPS."""
    min_frames: int = Field(4, ge=2, multiple_of=2)
    max_frames: int = Field(128, ge=2, multiple_of=2)
    """A cap that is logged when it bites (readings, 2)."""
    max_pixels: int = Field(151_200, ge=784)
    """Area of a frame: 360 x 420, paper 4.1 (readings, 1)."""
    min_pixels: int = Field(784, ge=784)
    backend: Literal["auto", "decord", "pyav"] = "auto"
    timeout_s: float = Field(60.0, gt=0)
    """A decode that takes longer is killed and becomes an error row."""
    memory_limit_bytes: int = Field(4 << 30, ge=256 << 20)

    @model_validator(mode="after")
    def _ordered(self) -> VideoConfig:
        if self.min_frames > self.max_frames or self.min_pixels > self.max_pixels:
            raise ValueError("min_frames and min_pixels must not be larger than max_frames and max_pixels")
        return self

    def spec(self) -> VideoSpec:
        """The part that determines frames, and therefore fingerprints."""
        names = ("fps", "min_frames", "max_frames", "max_pixels", "min_pixels", "backend")
        return VideoSpec(**{name: getattr(self, name) for name in names})


class ModelConfig(_Section):
    path: str
    """A folder with a Hugging Face model (or a hub name where a hub can be reached). Paper: Qwen2-VL-7B and Qwen2.5-VL-7B-Instruct."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"


class EngineConfig(_Section):
    """vLLM, as an actor owns it. One actor is one engine."""

    max_model_len: int = Field(32_768, gt=0)
    max_num_seqs: int = Field(64, gt=0)
    """Requests in one engine step; twice as many are kept in flight so that its queue never runs dry."""
    tensor_parallel_size: int = Field(1, gt=0)
    gpu_memory_utilization: float = Field(0.90, gt=0, le=1)
    kv_cache_gib_cpu: float = Field(2.0, gt=0)
    """VLLM_CPU_KVCACHE_SPACE; CPU only."""
    block_size: int | None = None
    """Tokens in a block of the prefix cache; None is the engine's own choice (128 on CPU, so short prompts never share)."""
    enforce_eager: bool = False
    decode_workers: int = Field(4, gt=0)
    """Decoder processes beside each engine."""
    num_actors: int = Field(8, gt=0)
    """Engines; Ray places them where the GPUs are."""
    num_cpus: float = Field(8, gt=0)
    """Per actor."""
    num_gpus: float = Field(1, ge=0)
    """Per actor; 0 runs vLLM's CPU backend."""
    rows_per_block: int = Field(64, gt=0)
    """Videos in one unit of resume: about a minute of one actor's work."""


class GenerationConfig(_Section):
    """How rationales are drawn (readings, 5: greedy, at most 512 new tokens)."""

    max_new_tokens: int = Field(512, gt=0)
    temperature: float = Field(0.0, ge=0)


class OptimiserConfig(_Section):
    """AdamW and its schedule; the paper's, 4.1 (readings, 20)."""

    lr_language: float = Field(1e-5, gt=0)
    """Language model and merger."""
    lr_vision: float = Field(2e-6, gt=0)
    """Vision tower without the merger."""
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)


class TrainingConfig(_Section):
    num_workers: int = Field(8, gt=0)
    global_batch_size: int = Field(16, gt=0)
    micro_batch_size: int = Field(2, gt=0)
    """Samples a worker takes at once; accumulation is what is left of the global batch."""
    rationale_epochs: int = Field(1, gt=0)
    """Stage 1 (paper 4.1: one epoch)."""
    classify_epochs: int = Field(1, gt=0)
    """Stage 2 (paper 4.1: one epoch). `direct-sft-2` trains twice this."""
    rationale: OptimiserConfig = OptimiserConfig()
    classify: OptimiserConfig = OptimiserConfig()
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: bool = True
    """Paper 4.1."""
    unlabelled_in_rationale_stage: bool = False
    """Stage 1 also takes the train videos that have no label (readings, 10: beyond the paper)."""
    checkpoint_every_steps: int = Field(50, gt=0)
    deepspeed: dict[str, Any] = Field(default_factory=lambda: {"zero_optimization": {"stage": 2}})
    """Passed to DeepSpeed as it is. An `optimizer` or `scheduler` block is refused: DeepSpeed would drop the two learning rates."""
    num_cpus: float = Field(8, gt=0)
    """Per worker."""
    num_gpus: float = Field(1, ge=0)
    """Per worker; 0 trains on the CPU with gloo."""

    @property
    def accumulation_steps(self) -> int:
        return self.global_batch_size // (self.num_workers * self.micro_batch_size)

    @model_validator(mode="after")
    def _global_batch_divides(self) -> TrainingConfig:
        if self.global_batch_size % (self.num_workers * self.micro_batch_size):
            raise ValueError(
                f"global_batch_size {self.global_batch_size} does not divide by num_workers {self.num_workers} x micro_batch_size "
                f"{self.micro_batch_size}; {_batch_choices(self.global_batch_size, self.num_workers, self.micro_batch_size)}"
            )
        return self

    @model_validator(mode="after")
    def _deepspeed_keeps_parameter_groups(self) -> TrainingConfig:
        for key in _DEEPSPEED_KEYS_WE_SET:
            if key in self.deepspeed:
                why = "DeepSpeed would drop the two learning rates" if key in ("optimizer", "scheduler") else "it is set from this section"
                raise ValueError(f"deepspeed.{key} must not be given: {why}; remove it and use the fields of `training`")
        return self


class EvaluationConfig(_Section):
    systems: tuple[SystemName, ...] = get_args(SystemName)
    split: Literal["train", "validation", "test"] = "test"
    engine: Literal["vllm", "hf"] = "vllm"
    """What scores: vLLM, or plain transformers (quicker to start; the same numbers to 2e-3)."""
    bootstrap_samples: int = Field(2000, ge=100)
    max_new_tokens: int = Field(16, gt=0)
    """For the "generate" mode (readings, 12)."""
    num_report_samples: int = Field(12, ge=0)


class ServeConfig(_Section):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65_535)
    system: SystemName = "rb-ft"
    """Whose model answers."""
    num_replicas: int = Field(1, gt=0)
    max_upload_bytes: int = Field(64 << 20, gt=0)
    request_timeout_s: float = Field(120.0, gt=0)
    max_queued_requests: int = Field(64, gt=0)


class RunConfig(_Section):
    """Everything that determines a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output_dir: str = "runs"
    """The run's folder is `<output_dir>/<name>`; a local path or a URI of any pyarrow filesystem. Relative to where the job is started."""
    seed: int = 0
    task: Task
    """In the file: the path of a task file, or the task itself."""
    data: DataConfig
    video: VideoConfig = VideoConfig()
    model: ModelConfig
    engine: EngineConfig = EngineConfig()
    generation: GenerationConfig = GenerationConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    serve: ServeConfig = ServeConfig()

    @property
    def run_dir(self) -> str:
        return f"{self.output_dir.rstrip('/')}/{self.name}"


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """The run that `path` and the `a.b=c` overrides describe; raises `ConfigError` with one line a mistake."""
    path = Path(path)
    raw = _read_yaml(path)
    for override in overrides or []:
        _apply_override(raw, override)
    if isinstance(raw.get("task"), str):
        task_path = _relative_to(path, raw["task"])
        raw["task"] = _read_yaml(Path(task_path))
    for section, keys in _PATH_KEYS.items():
        values = raw.get(section)
        if isinstance(values, dict):
            for key in keys:
                if isinstance(values.get(key), str):
                    values[key] = _relative_to(path, values[key], only_if_exists=section == "model")
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(_explain(item) for item in error.errors())) from None


def load_task(path: str | Path) -> Task:
    """The task in the file `path`; raises `ConfigError`."""
    try:
        return Task.model_validate(_read_yaml(Path(path)))
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(_explain(item, Task) for item in error.errors())) from None


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML; `load_config` reads it back equal."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


_PATH_KEYS = {
    "data": ("manifest", "annotations", "folder", "smarthome", "multihateclip", "video_root", "split_file"),
    "model": ("path",),
}


def _relative_to(config_path: Path, value: str, only_if_exists: bool = False) -> str:
    if "://" in value or Path(value).is_absolute():
        return value
    resolved = (config_path.parent / value).resolve()
    return str(resolved) if resolved.exists() or not only_if_exists or value.startswith(".") else value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file (`rbft init` makes one)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping of keys to values, is {type(raw).__name__}")
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> None:
    dotted, equals, value = override.partition("=")
    if not equals or not dotted.strip():
        raise ConfigError(f"--set {override}: write it as section.key=value, e.g. --set training.num_workers=4")
    *parents, last = dotted.strip().split(".")
    for parent in parents:
        child = raw.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {parent} is not a section")
        raw = child
    try:
        raw[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML: {' '.join(str(error).split())}") from None


def _explain(error: Any, root: type[BaseModel] = RunConfig) -> str:
    """One line for one pydantic error: the path, what is wrong, and for an unknown key the nearest known ones."""
    location = [str(part) for part in error["loc"]]
    where = ".".join(location) or "file"
    if error["type"] == "extra_forbidden":
        known = _known_keys(root, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return f"unknown key {where}; {hint}"
    if error["type"] == "missing":
        return f"{where} is missing; add it"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" + ("" if error["type"] == "value_error" else f" (got {error['input']!r})")


def _known_keys(model: type[BaseModel], location: list[str]) -> list[str]:
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _batch_choices(global_batch_size: int, num_workers: int, micro_batch_size: int) -> str:
    micros = [m for m in range(1, global_batch_size + 1) if global_batch_size % (num_workers * m) == 0]
    workers = [w for w in range(1, global_batch_size + 1) if global_batch_size % (w * micro_batch_size) == 0]
    batch = num_workers * micro_batch_size
    batches = sorted({max(batch, global_batch_size // batch * batch), -(-global_batch_size // batch) * batch})
    choices = [f"global_batch_size {' or '.join(map(str, batches))}"]
    choices += [f"micro_batch_size {', '.join(map(str, micros))}"] if micros else []
    choices += [f"num_workers {', '.join(map(str, workers))}"] if workers else []
    return "it would with " + "; or with ".join(choices)
