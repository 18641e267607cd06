"""One YAML a run, read into frozen models. The defaults are the paper's, each with its source.

    load_config(path, overrides) -> RunConfig

An unknown key is refused with its path and a suggestion, a key that stands twice with its line. Relative paths in a file are relative
to that file. `--set a.b=c` overrides one value (`c` is read as YAML; a path is relative to where the command is given). What a run would
do with a configuration is in `rbft.plan`.

Sources: "paper 4.1" is the paper's "Implementation Details"; "readings N" is our reading of an open point (docs/readings.md).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Hashable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rbft.errors import ConfigError
from rbft.records import SPLITS, VideoSpec
from rbft.systems import DEFAULT_SYSTEMS, FAMILIES, SystemName, parse_system, parse_systems
from rbft.task import Task

_DEEPSPEED_KEYS_WE_SET = (
    *("optimizer", "scheduler", "gradient_clipping", "gradient_accumulation_steps", "steps_per_print"),
    *("train_batch_size", "train_micro_batch_size_per_gpu", "bf16", "bfloat16", "fp16", "amp", "torch_autocast"),
    *("data_types", "communication_data_type"),
)
"""What `rbft.training.deepspeed_engine` sets, and the other names DeepSpeed has for the same."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
        if self.columns and not self.annotations:
            raise ValueError("columns says how to read annotations, and none are given; remove it or give annotations")
        if self.folder and self.video_root:
            raise ValueError("video_root has no meaning beside folder, whose videos lie below it; remove one of them")
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


_BODY_KEYS_WE_SET = ("messages", "model", "n", "stream", "media_io_kwargs")
"""What `rbft.engines.openai` sets, or reads one whole answer by. The limit of tokens and the like may be given: names differ there."""


def _plain_url(url: str, example: str, where_keys_go: str) -> str:
    """`url` without a slash at its end. What is wrong may hold a key, so that no message repeats it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"must begin with http:// or https:// and a host, e.g. {example}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"must hold no user, password, ?query or #fragment; put the key in an environment variable, {where_keys_go}")
    return url.rstrip("/")


class OpenAIServerConfig(_Section):
    """A model behind an OpenAI-compatible server: vLLM's with a bigger model, or an API."""

    url: str
    """Where its API begins, as a rule up to /v1, e.g. http://10.0.0.7:8000/v1."""
    model: str = Field(min_length=1)
    """The name the server has for the model."""
    api_key_env: str | None = None
    """The environment variable that holds the key; None sends none. The key itself is written nowhere."""
    frames: Literal["images", "video"] = "images"
    """"images": one a frame, each after its time; all servers take these. "video": one video, as vLLM's server takes it when it is started
    with --trust-request-mm-kwargs."""
    max_concurrency: int = Field(64, gt=0)
    """Requests under way from one engine; one that waits to be tried again keeps its place."""
    timeout_s: float = Field(300.0, gt=0)
    """For one try of a request: how long the server may be silent."""
    max_retries: int = Field(8, ge=0)
    """Of a request that met a busy or failing server (HTTP 408, 409, 429, 5xx), a broken connection or `timeout_s`: after 0.5 s to 8 s
    (together 40 s), or when the server says, if that is within two minutes."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Added to the body of each request, over what it holds by itself, e.g. {top_p: 1, repetition_penalty: 1}, or, where a model wants
    another name, {max_tokens: null, max_completion_tokens: 512}."""

    @field_validator("url")
    @classmethod
    def _url_is_plain(cls, url: str) -> str:
        return _plain_url(url, "http://127.0.0.1:8000/v1", "see api_key_env")

    @field_validator("api_key_env")
    @classmethod
    def _key_is_named_not_given(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", name):
            raise ValueError("must be the name of an environment variable, in capitals, e.g. OPENAI_API_KEY, and not the key itself")
        return name

    @field_validator("extra_body")
    @classmethod
    def _request_stays_ours(cls, body: dict[str, Any]) -> dict[str, Any]:
        if ours := sorted(set(body) & set(_BODY_KEYS_WE_SET)):
            raise ValueError(f"must not hold {', '.join(ours)}, which the request sets itself; remove it")
        return body


class TeacherConfig(_Section):
    """Who writes the rationales, if not the model itself: beyond the paper, whose model writes its own. At most one of the two."""

    model: ModelConfig | None = None
    """A model folder, as a rule of a bigger model, asked by vLLM as `engine` says."""
    server: OpenAIServerConfig | None = None
    """`engine.num_actors` processes ask it, which take no GPU."""

    @model_validator(mode="after")
    def _one_writes(self) -> TeacherConfig:
        if self.model is not None and self.server is not None:
            raise ValueError("give a model or a server, not both")
        return self


class EngineConfig(_Section):
    """vLLM, as an actor owns it. One actor is one engine."""

    max_model_len: int = Field(32_768, gt=0)
    max_num_seqs: int = Field(64, gt=0)
    """Requests in one engine step; twice as many are kept in flight, frames permitting, so that its queue never runs dry."""
    tensor_parallel_size: int = Field(1, gt=0)
    gpu_memory_utilization: float = Field(0.90, gt=0, le=1)
    kv_cache_gib_cpu: float = Field(2.0, gt=0)
    """VLLM_CPU_KVCACHE_SPACE; CPU only."""
    block_size: int | None = None
    """Tokens in a block of the prefix cache; None is the engine's own choice (128 on CPU, so short prompts never share)."""
    enforce_eager: bool = False
    max_frame_bytes: int = Field(4 << 30, gt=0)
    """Decoded frames in flight in one actor, at most; with twice `max_num_seqs` clips what bounds its memory."""
    decode_workers: int = Field(4, gt=0)
    """Decoder processes beside each engine."""
    num_actors: int = Field(8, gt=0)
    """Engines, at most; Ray places them where the GPUs are."""
    min_actors: int | None = Field(None, gt=0)
    """Engines a job keeps although it has no work for them; None is `num_actors`. With fewer it begins on the nodes there are, takes those
    that come (an autoscaler's, spot ones), and gives back what it no longer needs."""
    num_cpus: float = Field(8, gt=0)
    """Per actor."""
    num_gpus: float = Field(1, ge=0)
    """Per actor; 0 runs vLLM's CPU backend."""
    pin_cores: bool = False
    """Whether each actor keeps to `num_cpus` cores that no other has, as long as there are such: for several CPU engines on a node."""
    request_timeout_s: float = Field(900.0, gt=0)
    """An engine that leaves a request unanswered for so long hangs, and is treated as one that died."""
    batch_invariant: bool = False
    """vLLM's batch-invariant kernels: greedy text that does not depend on what else is in a batch. GPUs only; slower."""
    rows_per_block: int = Field(64, gt=0)
    """Videos in one unit of resume: about a minute of one actor's work."""

    @model_validator(mode="after")
    def _gpus_hold_the_engine(self) -> EngineConfig:
        if self.tensor_parallel_size > 1 and 0 < self.num_gpus < self.tensor_parallel_size:
            raise ValueError(
                f"num_gpus {self.num_gpus:g} is less than tensor_parallel_size {self.tensor_parallel_size}, and each part of an engine "
                f"needs a GPU; set num_gpus to {self.tensor_parallel_size}, or tensor_parallel_size to 1"
            )
        return self

    @model_validator(mode="after")
    def _options_fit_the_hardware(self) -> EngineConfig:
        if self.batch_invariant and self.num_gpus == 0:
            raise ValueError("batch_invariant is there for GPUs only, and num_gpus is 0; remove one of them")
        if self.min_actors is not None and self.min_actors > self.num_actors:
            raise ValueError(f"min_actors {self.min_actors} is more than num_actors {self.num_actors}; lower the one or raise the other")
        if self.pin_cores and (self.num_cpus < 1 or self.num_cpus % 1):
            raise ValueError(f"pin_cores needs a whole number of num_cpus to pin an actor to, and that is {self.num_cpus:g}")
        return self


class GenerationConfig(_Section):
    """How rationales are drawn (readings, 5: greedy, at most 512 new tokens)."""

    max_new_tokens: int = Field(512, gt=0)
    temperature: float = Field(0.0, ge=0)


GateName = Literal[
    "not_empty",
    "not_cut_off",
    "not_repeating",
    "no_refusal",
    "has_sections",
    "names_no_label",
    "agrees_with_label",
    "no_near_duplicate",
    "usual_length",
]
"""The gates of `rbft.rationales.gates`."""


class GatesConfig(_Section):
    """What becomes of rationales that do not pass the gates of `rbft.rationales.gates`. All are kept on disk whatever is chosen."""

    profile: Literal["paper", "filter", "resample", "best_of_n"] = "paper"
    """"paper": one is written for each video, and stage 1 learns from all of them. "filter": stage 1 leaves those out that do not pass
    one of `drop`, and stage 2 still sees their videos. "resample": those are drawn again first, up to `num_redraws` times with another
    seed, then once with the label as a hint. "best_of_n": `num_samples` are drawn, and the one is kept that fails the fewest of `drop`.
    With both, what still does not pass is left out as by "filter"."""
    drop: tuple[GateName, ...] = get_args(GateName)[:7]
    """Those that one text decides by itself. Near-duplicates and unusual lengths are told, and dropped where a task wants that."""
    num_redraws: int = Field(2, ge=0)
    num_samples: int = Field(4, ge=2)
    redraw_temperature: float = Field(0.7, gt=0)
    """Of every draw but a video's first, whose is `generation.temperature`."""
    hint: bool = True
    """Whether the last of "resample" may see the label (readings, 4: recorded in its provenance as `label_in_prompt`)."""

    def drawing(self) -> dict[str, Any] | None:
        """The part that determines what is written, for fingerprints; None where one draw a video is all."""
        used = {"resample": {"num_redraws", "hint"}, "best_of_n": {"num_samples"}}.get(self.profile)
        return None if used is None else self.model_dump(mode="json", include=used | {"profile", "drop", "redraw_temperature"})


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


class StageOptimisers(_Section):
    """The optimisers of one system's stages; None is the one all systems share."""

    rationale: OptimiserConfig | None = None
    classify: OptimiserConfig | None = None


class ValidationConfig(_Section):
    """Scoring videos of the manifest's `validation` split while stage 2 trains; never the test split's. Off by default, as the paper
    trains one epoch and takes what comes out of it. `final` is then the model of the best validation, not of the last step."""

    every_steps: int | None = Field(None, gt=0)
    """Optimiser steps from one validation to the next; the last step is always one. Give this, or `every_epochs`, or none: off."""
    every_epochs: float | None = Field(None, gt=0)
    """The same in epochs, e.g. 0.25."""
    max_videos: int = Field(256, gt=0)
    """The first so many in an order drawn by the seed, the same each time."""
    metric: Literal["macro_f1", "balanced_accuracy", "accuracy", "loss"] = "macro_f1"
    """Which validation is the best: the first three by label likelihood, as evaluation does; "loss" is the labels' token mean."""
    patience: int | None = Field(None, gt=0)
    """Validations in a row that are no better than the best before them, after which the stage ends; None trains to the end."""

    @property
    def is_on(self) -> bool:
        return self.every_steps is not None or self.every_epochs is not None

    @model_validator(mode="after")
    def _says_when(self) -> ValidationConfig:
        if self.every_steps is not None and self.every_epochs is not None:
            raise ValueError("give every_steps or every_epochs, not both")
        if self.patience is not None and not self.is_on:
            raise ValueError("patience counts validations, and there are none; give every_steps or every_epochs too")
        return self


ModelPart = Literal["vision", "merger", "language", "embeddings"]
"""The parts of a video chat model (`rbft.models.parameter_groups.part_of`): vision tower, merger, the language model's blocks with the
final norm, token embeddings with the language head."""


class LoraConfig(_Section):
    """Low-rank adapters in place of whole weights: beyond the paper, which trains all. Every weight but the adapters' is frozen."""

    rank: int = Field(16, gt=0)
    alpha: float = Field(32.0, gt=0)
    """What the adapters add is scaled by alpha / rank, with `rslora` by alpha / sqrt(rank)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    rslora: bool = False
    """Rank-stabilised scaling (Kalajdzievski 2023): for ranks of 64 and more."""
    language: Literal["all"] | tuple[str, ...] = "all"
    """Linear layers of the language model's blocks that get an adapter, by the last part of their names (q_proj, k_proj, v_proj, o_proj,
    gate_proj, up_proj, down_proj): "all", or some; [] for none."""
    vision: Literal["all"] | tuple[str, ...] = ()
    """The same of the vision tower without the merger (qkv, proj; gate_proj, up_proj, down_proj in Qwen2.5-VL, fc1, fc2 in Qwen2-VL). These
    learn at `lr_vision`."""
    quantised_base: Literal["none", "nf4"] = "none"
    """"nf4": the frozen weights are held in 4 bits by bitsandbytes (QLoRA, Dettmers et al. 2023). CUDA only; passed through, not tested."""

    @model_validator(mode="after")
    def _adapts_something(self) -> LoraConfig:
        if not self.language and not self.vision:
            raise ValueError("lora has no layers to adapt; give language or vision")
        return self


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
    per_system: dict[str, StageOptimisers] = Field(default_factory=dict)
    """System without "@N" -> its own optimisers, in place of the two above: for a comparison in which each system has its best rates."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Further seeds, beside the run's own: every system is trained and tested with each of them in the same job, on the same split and, if
    they are greedy, the same rationales. The summary and the report then have means and intervals over all seeds."""
    validation: ValidationConfig = ValidationConfig()
    """Beyond the paper; off by default."""
    class_balance: Literal["none", "sampling", "loss"] = "none"
    """Beyond the paper, for stage 2. "sampling": rare classes' videos stand in an epoch several times, so that all classes stand in it
    equally often (an epoch grows). "loss": each video stands once, with a weight inversely proportional to its class's frequency, 1 in the
    mean."""
    replay_share: float = Field(0.0, ge=0, lt=1)
    """Beyond the paper (readings, 27): the share of stage 2's samples that are rationales which stage 1 learned from, drawn by the seed, so
    that the final model can still explain. They come on top of the labels, and each weighs in the loss as much as a label does."""
    rationale_probe: int = Field(0, ge=0)
    """Rationales of stage 1 whose loss is measured before and after stage 2: what stage 2 makes the model forget. 0 measures nothing."""
    mlflow_uri: str | None = None
    """The address of an MLflow tracking server, which gets what log.jsonl and TensorBoard get: the experiment is named as the run, its runs
    as the stages. For files or a database: `mlflow server --backend-store-uri …`."""
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: bool = True
    """Paper 4.1. Covers the vision tower too."""
    batching: Literal["packed", "padded"] = "packed"
    """How a micro-batch's samples lie beside each other: end to end in one row, each attending to itself alone, or one a row and padded to
    the longest, those of similar length together. The gradient is the same but for rounding."""
    fused_kernels: Literal["auto", "off"] = "auto"
    """Liger's RMSNorm and SwiGLU where there is a GPU and liger-kernel is installed."""
    check_kernels: bool = True
    """Before the first step, compare the loss of the first micro-batch with that of transformers' own attention, norms and MLPs."""
    lora: LoraConfig | None = None
    """None trains whole weights, as the paper does. A stage's `final/` holds whole weights either way; its adapter stands beside it."""
    freeze: tuple[ModelPart, ...] = ()
    """Parts that do not learn. The paper trains all of them."""
    checkpoint_every_steps: int = Field(50, gt=0)
    checkpoint_every_minutes: float | None = Field(None, gt=0)
    """Also when so much time has passed since the last one. What a crash costs is the shorter of the two, and the time a write takes."""
    keep_checkpoints: int = Field(2, gt=0)
    """The newest so many stay, and the best beside them. Two: the one before, in case a disk loses the newest."""
    min_workers: int | None = Field(None, gt=0)
    """Start and go on with as few workers as this where there is not room for `num_workers`, and with more again when there is. Counts
    that do not divide the global batch are passed over. The number of workers changes results by rounding. None: always `num_workers`."""
    deepspeed: dict[str, Any] = Field(default_factory=lambda: {"zero_optimization": {"stage": 2}})
    """Passed to DeepSpeed as it is; in the file also the path of a YAML file that holds it (configs/deepspeed/). An `optimizer` or
    `scheduler` block is refused: DeepSpeed would drop the two learning rates."""
    num_cpus: float = Field(8, gt=0)
    """Per worker."""
    num_gpus: float = Field(1, ge=0)
    """Per worker; 0 trains on the CPU with gloo."""
    clip_cache_bytes: int = Field(20 << 30, ge=0)
    """Of decoded clips that a node keeps on its disk between epochs and stages, and never more than half of what is free there; 0 keeps
    none. A minute at 1 FPS of the largest frames the paper has takes 27 MB."""
    clip_cache_folder: str | None = None
    """On each node, shared by its workers and by runs; by default a folder of the user's in the system's temporary directory."""

    @field_validator("mlflow_uri")
    @classmethod
    def _mlflow_uri_is_a_servers(cls, uri: str | None) -> str | None:
        return None if uri is None else _plain_url(uri, "http://127.0.0.1:5000", "MLFLOW_TRACKING_TOKEN")

    def optimiser(self, system: str, stage: Literal["rationale", "classify"]) -> OptimiserConfig:
        """What `stage` of `system` is trained with."""
        own = self.per_system.get(parse_system(system).family, StageOptimisers())
        return getattr(own, stage) or getattr(self, stage)

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """The numbers of workers this can be trained with, ascending."""
        least = self.num_workers if self.min_workers is None else self.min_workers
        counts = range(least, self.num_workers + 1)
        return tuple(count for count in counts if self.global_batch_size % (count * self.micro_batch_size) == 0)

    def for_workers(self, num_workers: int) -> TrainingConfig:
        """The same with that many workers, the global batch as it is; `ConfigError` if they are none of `worker_counts`."""
        if num_workers not in self.worker_counts:
            raise ConfigError(
                f"training: {num_workers} workers are not among those that are possible ({', '.join(map(str, self.worker_counts))}); "
                f"global_batch_size {self.global_batch_size} must divide by workers x micro_batch_size {self.micro_batch_size}, and they "
                f"must be num_workers, or between min_workers and it"
            )
        return self.model_copy(update={"num_workers": num_workers, "min_workers": None})

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches a worker takes between two optimiser steps."""
        return self.global_batch_size // (self.num_workers * self.micro_batch_size)

    @property
    def zero_stage(self) -> int:
        """0 to 3: what DeepSpeed partitions over the workers (nothing, optimiser, gradients too, parameters too)."""
        return int(self.deepspeed.get("zero_optimization", {}).get("stage", 0))

    @property
    def frozen_parts(self) -> frozenset[ModelPart]:
        """Parts of the model without a parameter that learns."""
        if self.lora is None:
            return frozenset(self.freeze)
        adapted = {part for part in ("language", "vision") if getattr(self.lora, part)}
        return frozenset(part for part in get_args(ModelPart) if part not in adapted)

    def offload_device(self, what: Literal["optimizer", "param"]) -> str:
        """Where DeepSpeed keeps the optimiser's state ("optimizer") or the weights ("param"): "none" (the device), "cpu" or "nvme"."""
        offload = self.deepspeed.get("zero_optimization", {}).get(f"offload_{what}") or {}
        return str(offload.get("device", "none"))

    @model_validator(mode="after")
    def _global_batch_divides(self) -> TrainingConfig:
        if self.global_batch_size % (self.num_workers * self.micro_batch_size):
            raise ValueError(
                f"global_batch_size {self.global_batch_size} does not divide by num_workers {self.num_workers} x micro_batch_size "
                f"{self.micro_batch_size}; {_batch_choices(self.global_batch_size, self.num_workers, self.micro_batch_size)}"
            )
        return self

    @model_validator(mode="after")
    def _min_workers_are_not_more(self) -> TrainingConfig:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers {self.min_workers} is more than num_workers {self.num_workers}")
        return self

    @model_validator(mode="after")
    def _per_system_names_systems(self) -> TrainingConfig:
        unknown = sorted(set(self.per_system) - set(FAMILIES))
        if unknown:
            raise ValueError(f"per_system.{unknown[0]}: no such system; there are {', '.join(FAMILIES)} (without -P and @N)")
        return self

    @model_validator(mode="after")
    def _deepspeed_keeps_parameter_groups(self) -> TrainingConfig:
        for key in _DEEPSPEED_KEYS_WE_SET:
            if key in self.deepspeed:
                why = "DeepSpeed would drop the two learning rates" if key in ("optimizer", "scheduler") else "it is set from this section"
                raise ValueError(f"deepspeed.{key} must not be given: {why}; remove it and use the fields of `training`")
        return self

    @model_validator(mode="after")
    def _zero_stage_is_known(self) -> TrainingConfig:
        zero = self.deepspeed.get("zero_optimization", {})
        if not isinstance(zero, dict):
            raise ValueError(f"deepspeed.zero_optimization must be a mapping, e.g. {{stage: 2}}; got {zero!r}")
        if zero.get("stage", 0) not in (0, 1, 2, 3):
            raise ValueError(f"deepspeed.zero_optimization.stage must be 0, 1, 2 or 3; got {zero['stage']!r}")
        for key in ("offload_optimizer", "offload_param"):
            offload = zero.get(key) or {}
            if not isinstance(offload, dict) or offload.get("device", "none") not in ("none", "cpu", "nvme"):
                raise ValueError(f"deepspeed.zero_optimization.{key} must be like {{device: cpu}}, or nvme or none; got {offload!r}")
        if self.precision == "bf16" and self.zero_stage == 0:
            # DeepSpeed 0.19, DeepSpeedEngine._do_optimizer_sanity_check: "unsupported mix" of bf16 weights and fp32 accumulation.
            raise ValueError(
                "deepspeed.zero_optimization.stage 0 cannot add up bf16 gradients in fp32; give stage 1, 2 or 3, or precision fp32"
            )
        return self

    @model_validator(mode="after")
    def _something_learns(self) -> TrainingConfig:
        if self.lora is None and self.frozen_parts == set(get_args(ModelPart)):
            raise ValueError("freeze names every part of the model, and nothing would learn; leave one out")
        if self.lora is not None:
            if both := sorted(set(self.freeze) & {part for part in ("language", "vision") if getattr(self.lora, part)}):
                raise ValueError(f"freeze names {both[0]}, and lora.{both[0]} adapts it; remove one of them")
            if self.lora.quantised_base != "none" and (self.num_gpus == 0 or self.zero_stage == 3):
                raise ValueError("lora.quantised_base needs GPUs (num_gpus) and ZeRO-1 or 2: 4-bit weights cannot be partitioned")
        return self


class EvaluationConfig(_Section):
    systems: tuple[SystemName, ...] = Field(DEFAULT_SYSTEMS, min_length=1)
    """What is trained and compared; `rbft.systems` says what the names mean."""
    split: Literal["train", "validation", "test"] = "test"
    engine: Literal["vllm", "hf"] = "vllm"
    """What scores: vLLM, or plain transformers (quicker to start; the same numbers to 2e-3)."""
    bootstrap_samples: int = Field(2000, ge=100)
    max_new_tokens: int = Field(16, gt=0)
    """For the "generate" mode (readings, 12)."""
    num_report_samples: int = Field(12, ge=0)
    rationale_check: int = Field(0, ge=0)
    """Held-out videos that every model with a stage 1 explains again after stage 2; the report has the share of its rationales that pass
    the gates, before and after (readings, 27). 0 asks for none."""

    @model_validator(mode="after")
    def _systems_are_distinct(self) -> EvaluationConfig:
        if len(set(self.systems)) != len(self.systems):
            raise ValueError(f"systems must be distinct; got {', '.join(self.systems)}")
        return self

    @property
    def takes_unlabelled(self) -> bool:
        """Whether a system learns from training videos without a label."""
        return any(system.unlabelled_too for system in parse_systems(self.systems))

    @property
    def needs_rationales(self) -> bool:
        """Whether a system learns from rationales that the base model writes."""
        return any(system.rationales in ("own", "shuffled") for system in parse_systems(self.systems))


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
    seed: int = Field(0, ge=0)
    task: Task
    """In the file: the path of a task file, or the task itself."""
    data: DataConfig
    video: VideoConfig = VideoConfig()
    model: ModelConfig
    teacher: TeacherConfig = TeacherConfig()
    engine: EngineConfig = EngineConfig()
    generation: GenerationConfig = GenerationConfig()
    gates: GatesConfig = GatesConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    serve: ServeConfig = ServeConfig()

    @model_validator(mode="after")
    def _seeds_are_distinct(self) -> RunConfig:
        seeds = (self.seed, *self.training.seeds)
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"training.seeds are further ones, all different, beside seed {self.seed}; got {list(self.training.seeds)}")
        return self

    @property
    def run_dir(self) -> str:
        return f"{self.output_dir.rstrip('/')}/{self.name}"

    @model_validator(mode="after")
    def _answers_fit_the_engine(self) -> RunConfig:
        if self.generation.max_new_tokens >= self.engine.max_model_len:
            raise ValueError(
                f"generation.max_new_tokens {self.generation.max_new_tokens} leaves no room for a video in engine.max_model_len "
                f"{self.engine.max_model_len}; raise the one or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _packed_rows_need_their_attention(self) -> RunConfig:
        if self.training.batching == "packed" and self.model.attention == "eager":
            raise ValueError(
                "model.attention eager cannot take packed rows without a mask of n x n tokens; set training.batching to padded, or "
                "model.attention to sdpa"
            )
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that `path` and the `a.b=c` overrides describe; raises `ConfigError` with all mistakes on one line."""
    path = Path(path)
    raw = _read_yaml(path)
    task_file = raw["task"] if isinstance(raw.get("task"), str) else None
    _resolve(raw, path.parent)
    for override in overrides:
        _apply_override(raw, override)
    _resolve(raw, Path.cwd())
    # A section whose keys are all commented out is null in YAML, and means the defaults.
    raw = {key: value for key, value in raw.items() if value is not None}
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        where = f"{path} with --set {' '.join(overrides)}" if overrides else str(path)
        if task_file and any(item["loc"][:1] == ("task",) for item in error.errors()):
            where += f" (task file {task_file})"
        raise ConfigError(f"{where}: {_explain(error, RunConfig)}") from None


def load_task(path: str | Path) -> Task:
    """The task in the file `path`; raises `ConfigError`."""
    try:
        return Task.model_validate(_read_yaml(Path(path)))
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error, Task)}") from None


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML; `load_config` reads it back equal."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


_PATH_KEYS = {
    ("data",): ("manifest", "annotations", "folder", "smarthome", "multihateclip", "video_root", "split_file"),
    ("model",): ("path",),
    ("teacher", "model"): ("path",),
    ("training",): ("clip_cache_folder",),
}


def _resolve(raw: dict[str, Any], base: Path) -> None:
    """Make the paths in `raw` that are relative absolute, below `base`, and put the contents of the task file and the DeepSpeed file in
    place of their paths."""
    if isinstance(raw.get("task"), str):
        raw["task"] = _read_yaml(Path(_absolute(raw["task"], base)))
    training = raw.get("training")
    if isinstance(training, dict) and isinstance(training.get("deepspeed"), str):
        training["deepspeed"] = _read_yaml(Path(_absolute(training["deepspeed"], base)))
    for sections, keys in _PATH_KEYS.items():
        values: Any = raw
        for section in sections:
            values = values.get(section) if isinstance(values, dict) else None
        if not isinstance(values, dict):
            continue
        for key in keys:
            value = values[key] if isinstance(values.get(key), str) else ""
            # "Qwen/Qwen2-VL-7B-Instruct" is a hub name unless there is such a folder.
            is_hub_name = sections[-1] == "model" and not value.startswith((".", "~")) and not (base / value).exists()
            if value and not is_hub_name:
                values[key] = _absolute(value, base)


def _absolute(value: str, base: Path) -> str:
    return value if "://" in value else str((base / Path(value).expanduser()).resolve())


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice in a mapping is a mistake: plain YAML readers silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key_node.value!r} stands twice", key_node.start_mark)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = _parse_yaml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file (`rbft init` makes one)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date like 2024-99-99
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping of keys to values, is {type(raw).__name__}")
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> None:
    dotted, equals, value = override.partition("=")
    *parents, last = (part.strip() for part in dotted.split("."))
    if not equals or not all((*parents, last)):
        raise ConfigError(f"--set {override}: write it as section.key=value, e.g. --set training.num_workers=4")
    for depth, parent in enumerate(parents):
        if raw.get(parent) is None:
            raw[parent] = {}
        if not isinstance(raw[parent], dict):
            raise ConfigError(f"--set {override}: {'.'.join(parents[: depth + 1])} is a value, not a section; set it as a whole")
        raw = raw[parent]
    try:
        raw[last] = _parse_yaml(value)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML: {' '.join(str(error).split())}") from None


def _explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Every mistake pydantic found, on one line: the path, what is wrong, and for an unknown key what was probably meant."""
    items = error.errors()
    # A list with a wrong item is also reported as too short, which says nothing new.
    lists_with_wrong_items = {item["loc"][:length] for item in items for length in range(len(item["loc"]))}
    kept = [item for item in items if not (item["type"] == "too_short" and item["loc"] in lists_with_wrong_items)]
    return "; ".join(_explain_one(item, root) for item in kept)


def _explain_one(item: Any, root: type[BaseModel]) -> str:
    location = [str(part) for part in item["loc"]]
    where = ".".join(location) or "file"
    match item["type"]:
        case "extra_forbidden":
            return f"unknown key {where}; {_suggestion(root, location)}"
        case "missing":
            return f"{where} is missing; add it"
        case "model_type":
            return f"{where} must be a mapping of keys to values (got {_short(item['input'])})"
        case "value_error":
            message = str(item["msg"]).removeprefix("Value error, ")
            return f"{where}: {message}" if location else message
        case "string_type" if isinstance(item["input"], (bool, int, float, date)):
            return f"{where} must be text, and YAML reads this as {_short(item['input'])}; put it in quotes"
    return f"{where}: {item['msg']} (got {_short(item['input'])})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _suggestion(root: type[BaseModel], location: list[str]) -> str:
    """What the unknown key at `location` was meant to be: a near name beside it, the same name elsewhere, or any of its section."""
    *parents, key = location
    section: type[BaseModel] | None = root
    for part in parents:
        # A number is a place in a list, whose items `_section_of` has already stepped into.
        section = section if part.isdigit() or section is None else _section_of(section, part)
    known = list(section.model_fields) if section else []
    if near := difflib.get_close_matches(key, known, n=1, cutoff=0.7):
        return f"did you mean {'.'.join([*parents, near[0]])}?"
    everywhere = list(_dotted_keys(root))
    if same := [dotted for dotted in everywhere if dotted.split(".")[-1] == key]:
        return f"did you mean {' or '.join(same)}?"
    return f"known keys there: {', '.join(known)}"


def _section_of(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The model that the field `key` holds, directly or as the items of a tuple; None for a mapping, whose keys are not ours."""
    annotation = model.model_fields[key].annotation if key in model.model_fields else None
    if get_origin(annotation) is dict:
        return None
    return next((kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key in model.model_fields:
        yield f"{prefix}{key}"
        if (section := _section_of(model, key)) is not None:
            yield from _dotted_keys(section, f"{prefix}{key}.")


def _batch_choices(global_batch_size: int, num_workers: int, micro_batch_size: int) -> str:
    """What to change, one field at a time, so that the global batch divides; every number named does."""
    batch = num_workers * micro_batch_size
    batches = sorted({max(batch, global_batch_size // batch * batch), -(-global_batch_size // batch) * batch})
    choices = [f"global_batch_size {' or '.join(map(str, batches))}"]
    for name, other in (("micro_batch_size", num_workers), ("num_workers", micro_batch_size)):
        if global_batch_size % other == 0:
            choices.append(f"{name} {_one_of(_divisors(global_batch_size // other))}")
    return "it would with " + "; or with ".join(choices)


def _one_of(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + (" or " if len(numbers) > 1 else "") + str(numbers[-1])


def _divisors(number: int) -> list[int]:
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})
