"""What one training worker will hold in memory, estimated before anything starts, and what to change where it does not fit.

Weights, gradients and optimiser follow from DeepSpeed's partitioning and are exact but for padding. Buffers are those of the DeepSpeed
configuration, or its defaults. Activations are measured on blocks without weights or data (`rbft.training.activations`) and added up for
the moment in which most is alive. Not covered: CUDA's own context, and what its allocator loses to fragmentation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from rbft.config import LoraConfig, TrainingConfig
from rbft.models.shape import ModelShape

_FP32 = 4
_REDUCE_BUCKET = 500_000_000
"""Elements; DeepSpeed's default of reduce_bucket_size."""
_MAX_LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's default of stage3_max_live_parameters."""
_NF4 = 0.5 + 1 / 16
"""Bytes a weight of a 4-bit base: half a byte, and a scale for each 64 weights (Dettmers et al. 2023, 3; before double quantisation)."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one worker."""

    parameters: int
    gradients: int
    optimiser: int
    """fp32 weights and AdamW's two moments."""
    buffers: int
    """In which gradients are sent, and under ZeRO-3 parameters gathered."""
    activations: int
    offloaded: int = 0
    """In the node's memory or on its disk instead; not in `total`."""

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimiser + self.buffers + self.activations


@dataclass(frozen=True)
class SampleSize:
    """Tokens of one sample."""

    text: int
    """Prompt and answer."""
    video: int
    answer: int
    """The supervised ones, which are among `text`."""


@dataclass(frozen=True)
class Remedy:
    """A change of the configuration, together with those before it, and what it would come to."""

    change: str
    """As it is written in the YAML, on one line."""
    memory: TrainingMemory


def training_memory(shape: ModelShape, training: TrainingConfig, sample: SampleSize) -> TrainingMemory:
    """The estimate for micro-batches of samples of that size."""
    stage, num_workers = training.zero_stage, training.num_workers
    width = 2 if training.precision == "bf16" else _FP32
    zero = training.deepspeed.get("zero_optimization", {})
    added = _adapter_parameters(shape, training.lora)
    count = added if training.lora else shape.num_parameters - sum(shape.num_of_part[part] for part in training.frozen_parts)

    def share(number: int, partitioned_from: int) -> int:
        return -(-number // num_workers) if stage >= partitioned_from else number

    weights = share(shape.num_parameters + added, 3) * width
    if training.lora and training.lora.quantised_base != "none":
        quantised = sum(layer.in_features * layer.out_features for layer in shape.linear_layers)
        weights -= round(quantised * (width - _NF4))
    # fp32 weights of its own: under ZeRO DeepSpeed makes a copy of its partition also where the weights are fp32 already.
    optimiser = share(count, 1) * (3 if stage > 0 else 2) * _FP32
    gradients = _gradient_bytes(count, training, width)
    bucket = min(count, int(zero.get("reduce_bucket_size", _REDUCE_BUCKET)))
    num_buckets = 2 if zero.get("overlap_comm", stage == 3) else 1
    buffers = bucket * (num_buckets * width + (_FP32 if width != _FP32 else 0)) if stage > 0 else 0
    if stage == 3:
        buffers += min(shape.num_parameters, int(zero.get("stage3_max_live_parameters", _MAX_LIVE_PARAMETERS))) * width
    offloaded = 0
    if training.offload_device("param") != "none":
        offloaded, weights = offloaded + weights, 0
    if training.offload_device("optimizer") != "none":
        # The step is taken where the state is, and the gradients go there as they come.
        offloaded, optimiser, gradients = offloaded + optimiser + gradients, 0, 0
    return TrainingMemory(weights, gradients, optimiser, buffers, activation_bytes(shape, training, sample), offloaded)


def _gradient_bytes(count: int, training: TrainingConfig, width: int) -> int:
    """Of `count` weights that learn, as DeepSpeed 0.19 holds them between backward pass and step (measured; a test holds it)."""
    share = -(-count // training.num_workers)
    if training.zero_stage == 1 and width != _FP32 and training.offload_device("optimizer") == "none":
        return count * (_FP32 + width)  # BF16_Optimizer adds up in fp32 and keeps the bf16 gradients' memory
    if training.zero_stage == 1:
        # Each worker's share is cut out when the last micro-batch's gradients are sent; until then all of those before are added up whole.
        return share * _FP32 + (count * _FP32 if training.accumulation_steps > 1 else 0)
    return (share if training.zero_stage >= 2 else count) * _FP32


def activation_bytes(shape: ModelShape, training: TrainingConfig, sample: SampleSize) -> int:
    """The most that is alive at once of what forward and backward passes make of one micro-batch, its frames included."""
    from rbft.training.activations import measure_pieces  # imports torch, which planning without a model does without

    pieces = measure_pieces(shape.config, training)
    size, checkpointing = training.micro_batch_size, training.gradient_checkpointing
    num_tokens, num_video, num_answer = size * (sample.text + sample.video), size * sample.video, size * sample.answer
    num_patches = num_video * shape.merge_size**2
    patch_states, token_states = pieces.patch_state * num_patches, pieces.token_state * num_tokens

    # The video's frames (uint8), then what the vision tower keeps: blocks that learn keep what they need, and all keep their outputs.
    num_values = num_patches * 3 * shape.temporal_patch_size * shape.patch_size**2
    tower = num_values + pieces.patches.kept.of(num_patches)
    # The frames as fp32 pixels live as long as the forward pass, unless the patch embedding keeps these very ones.
    kept_as_they_are = training.precision == "fp32" and pieces.patches.kept.each > 0
    pixels = 0 if kept_as_they_are else num_values * _FP32
    if pieces.vision_learns or pieces.merger.kept.each > 0:
        tower += patch_states  # of the last block, for the merger
    if pieces.vision_learns:
        block = 0.0 if checkpointing else pieces.vision.kept.of(num_patches)
        tower += shape.vision.num_layers * (patch_states + block)
    tower += pieces.merger.kept.of(num_video) + pieces.token_state * num_video
    block = 0.0 if checkpointing else pieces.text.kept.of(num_tokens)
    # Of the last block, what follows its attention is there for the predicted tokens alone.
    after_attention = (pieces.text.kept.each - pieces.text_attention.kept.each) * num_answer
    last_block = 0.0 if checkpointing else pieces.text_attention.kept.of(num_tokens) + after_attention
    # Embeddings, what the blocks keep, and the states that go on to the head.
    all_but_last = tower + token_states + (shape.text.num_layers - 1) * (token_states + block)
    both = all_but_last + token_states + last_block + pieces.token_state * num_answer

    def at_work(piece: Any, number: int) -> float:
        """A block in its backward pass: with checkpointing all it keeps is made again first."""
        return float(piece.peak.of(number) - (0 if checkpointing else piece.kept.of(number)))

    # The end of the forward pass, then backward passes; a vision tower in which nothing learns has a forward alone.
    moments = [
        both + pixels + pieces.head.kept.of(num_answer),
        both + pieces.head.peak.of(num_answer),
        both + at_work(pieces.text_attention, num_tokens) + (pieces.text.peak.each - pieces.text_attention.peak.each) * num_answer,
        all_but_last + at_work(pieces.text, num_tokens),
    ]
    forward_only = 0 if pieces.vision_learns else pixels + patch_states
    moments += [tower + pieces.merger.peak.of(num_video), tower + forward_only + at_work(pieces.vision, num_patches)]
    return round(max(moments))


def remedies(shape: ModelShape, training: TrainingConfig, sample: SampleSize) -> Iterator[Remedy]:
    """What to try where it does not fit, each on top of those before it: first what changes nothing in the result, then what costs speed,
    then what trains less, then what costs most speed. What is written is what is estimated, and the configuration takes it: 4-bit weights
    cannot be partitioned, so with them there is no ZeRO-3."""
    can_partition = training.lora is None or training.lora.quantised_base == "none"
    zero3 = _with_zero(training.deepspeed, stage=3)
    in_cpu = _with_zero(zero3, offload_optimizer={"device": "cpu"}, offload_param={"device": "cpu"})
    steps: list[tuple[dict[str, Any], bool]] = [
        ({"micro_batch_size": 1}, training.micro_batch_size > 1),
        ({"gradient_checkpointing": True}, not training.gradient_checkpointing),
        ({"deepspeed": zero3}, can_partition and training.zero_stage < 3 and training.num_workers > 1),
        ({"lora": {"rank": 16}} | ({"freeze": []} if training.freeze else {}), training.lora is None),
        ({"deepspeed": in_cpu}, can_partition and training.offload_device("param") == "none"),
    ]
    for update, applies in steps:
        if applies:
            training = TrainingConfig.model_validate(training.model_dump() | update)
            yield Remedy(_flow(update), training_memory(shape, training, sample))


def _with_zero(deepspeed: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {**deepspeed, "zero_optimization": {**deepspeed.get("zero_optimization", {}), **changed}}


def _flow(update: dict[str, Any]) -> str:
    """YAML on one line, to be pasted into `training`."""
    return yaml.safe_dump(update, default_flow_style=True, sort_keys=False, width=math.inf).strip()[1:-1]


def _adapter_parameters(shape: ModelShape, lora: LoraConfig | None) -> int:
    if lora is None:
        return 0
    wanted = {"language": lora.language, "vision": lora.vision}
    return sum(
        lora.rank * (layer.in_features + layer.out_features)
        for layer in shape.linear_layers
        if wanted[layer.part] == "all" or layer.name in wanted[layer.part]
    )
