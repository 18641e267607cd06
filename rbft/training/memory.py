"""What one training worker will hold in memory, estimated before anything starts.

Weights, gradients and optimiser follow from DeepSpeed's partitioning and are exact but for padding. Buffers are DeepSpeed's defaults.
Activations are an estimate: what autograd keeps of Qwen's blocks, counted by hand. Not covered: CUDA's own context and fragmentation.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from rbft.config import TrainingConfig
from rbft.models.shape import BlockShape, ModelShape

_FP32 = 4
_REDUCE_BUCKET = 500_000_000
"""Elements; DeepSpeed's default of reduce_bucket_size."""
_MAX_LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's default of stage3_max_live_parameters."""


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

    @property
    def total(self) -> int:
        return sum(astuple(self))


@dataclass(frozen=True)
class SampleSize:
    """Tokens of one sample."""

    text: int
    """Prompt and answer."""
    video: int
    answer: int
    """The supervised ones, which are among `text`."""


def training_memory(shape: ModelShape, training: TrainingConfig, sample: SampleSize) -> TrainingMemory:
    """The estimate for micro-batches of samples of that size."""
    stage, num_workers, count = training.zero_stage, training.num_workers, shape.num_parameters
    width = 2 if training.precision == "bf16" else _FP32
    zero = training.deepspeed.get("zero_optimization", {})

    def share(partitioned_from: int) -> int:
        return -(-count // num_workers) if stage >= partitioned_from else count

    # fp32 weights of its own: under ZeRO DeepSpeed makes a copy of its partition also where the weights are fp32 already.
    optimiser_width = (3 if stage > 0 else 2) * _FP32
    bucket = min(count, int(zero.get("reduce_bucket_size", _REDUCE_BUCKET)))
    num_buckets = 2 if zero.get("overlap_comm", stage == 3) else 1
    buffers = bucket * (num_buckets * width + (_FP32 if width != _FP32 else 0)) if stage > 0 else 0
    if stage == 3:
        buffers += min(count, int(zero.get("stage3_max_live_parameters", _MAX_LIVE_PARAMETERS))) * width
    return TrainingMemory(
        parameters=0 if _is_offloaded(zero, "offload_param") else share(3) * width,
        gradients=share(2) * _FP32,
        optimiser=0 if _is_offloaded(zero, "offload_optimizer") else share(1) * optimiser_width,
        buffers=buffers,
        activations=training.micro_batch_size * _sample_activations(shape, sample, width, training.gradient_checkpointing),
    )


def _is_offloaded(zero: dict[str, object], key: str) -> bool:
    offload = zero.get(key)
    return isinstance(offload, dict) and offload.get("device", "none") != "none"


def _sample_activations(shape: ModelShape, sample: SampleSize, width: int, gradient_checkpointing: bool) -> int:
    text, vision = shape.text, shape.vision
    num_tokens, num_patches = sample.text + sample.video, sample.video * shape.merge_size**2
    text_block, vision_block = _block_elements(text) * num_tokens, _block_elements(vision) * num_patches
    if gradient_checkpointing:
        # Every block's input is kept; one block at a time is computed again, and text and vision are not at work at once.
        inputs = text.num_layers * text.hidden_size * num_tokens + vision.num_layers * vision.hidden_size * num_patches
        elements = inputs + max(text_block, vision_block)
    else:
        elements = text.num_layers * text_block + vision.num_layers * vision_block
    pixels = num_patches * 3 * shape.temporal_patch_size * shape.patch_size**2
    # Of the supervised positions only (`rbft.training.loss`): logits in fp32, their softmax, its gradient.
    logits = 3 * _FP32 * sample.answer * shape.vocab_size
    return width * (elements + pixels) + logits


def _block_elements(block: BlockShape) -> int:
    """Elements a token that a block's backward needs: norms with their fp32 upcasts, q, k, v, rotated q and k, attention, residuals;
    gate, up, activation and product of the MLP; the gradients in flight."""
    return 16 * block.hidden_size + 6 * block.intermediate_size
