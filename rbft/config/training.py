"""How the two stages are trained."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from rbft.config.section import NodeResources, Section, plain_url
from rbft.errors import ConfigError
from rbft.systems import FAMILIES, parse_system

_DEEPSPEED_KEYS_WE_SET = (
    *("optimizer", "scheduler", "gradient_clipping", "gradient_accumulation_steps", "steps_per_print"),
    *("train_batch_size", "train_micro_batch_size_per_gpu", "bf16", "bfloat16", "fp16", "amp", "torch_autocast"),
    *("data_types", "communication_data_type"),
)
"""What `rbft.training.deepspeed_engine` sets, and the other names DeepSpeed has for the same."""


class OptimiserConfig(Section):
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


class StageOptimisers(Section):
    """The optimisers of one system's stages; None is the one all systems share."""

    rationale: OptimiserConfig | None = None
    classify: OptimiserConfig | None = None


class ValidationConfig(Section):
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


class LoraConfig(Section):
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


class TrainingConfig(Section):
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
    that the final model can still explain. They come on top of the labels, and each weighs in the loss as much as a label does. With it on,
    `evaluation.rationale_check` measures what that is worth."""
    rationale_probe: int = Field(0, ge=0)
    """Rationales of stage 1 whose loss is measured before and after stage 2: what stage 2 makes the model forget. 0 measures nothing."""
    rationale_validation_share: float = Field(0.0, ge=0, le=0.5)
    """Beyond the paper: the share of stage 1's rationales, drawn by the seed, that are not learned; their loss is measured after every
    epoch and stands in the log as `validation_loss`. 0, as in the paper, learns from all."""
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
    resources: NodeResources = Field(default_factory=dict)
    """Per worker: {on_demand: 1} keeps training off the nodes that `cluster.yaml` starts as spot."""
    clip_cache_bytes: int = Field(20 << 30, ge=0)
    """Of decoded clips that a node keeps on its disk between epochs and stages, and never more than half of what is free there; 0 keeps
    none. A minute at 1 FPS of the largest frames the paper has takes 27 MB."""
    clip_cache_folder: str | None = None
    """On each node, shared by its workers and by runs; by default a folder of the user's in the system's temporary directory."""

    scratch: str | None = None
    """For a run in a store: the local folder in which it is trained, with room for `keep_checkpoints` + 1 checkpoints; what lasts goes to
    the store as it is made. Workers on several nodes must see the same one. By default ~/.cache/rbft/training."""

    @field_validator("scratch")
    @classmethod
    def _scratch_is_local(cls, scratch: str | None) -> str | None:
        if scratch is not None and "://" in scratch:
            raise ValueError("scratch is a local folder, in which DeepSpeed writes; give a path, on a fast disk")
        return scratch

    @field_validator("mlflow_uri")
    @classmethod
    def _mlflow_uri_is_a_servers(cls, uri: str | None) -> str | None:
        return None if uri is None else plain_url(uri, "http://127.0.0.1:5000", "MLFLOW_TRACKING_TOKEN")

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
