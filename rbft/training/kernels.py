"""What a stage computes with: attention in segments, patches embedded by a matrix product, a last layer that leaves out what nobody asks
for, Liger's fused norms and MLPs; and whether they agree with the plain ones.

Kernels come from packages that are installed or not, for a GPU that is there or not. So a stage begins by asking them and transformers'
own implementation for the loss of its first micro-batch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Iterator
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from rbft.errors import TrainingError
from rbft.models.attention import reference_attention, use_segments
from rbft.models.batches import MicroBatch, to_device
from rbft.models.last_layer import narrow_last_layer
from rbft.models.patches import multiply_patches
from rbft.training.loss import supervised_totals

if TYPE_CHECKING:
    from rbft.config import TrainingConfig

TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
"""How far the losses a token may be apart. Rounding gave up to 1e-6 in fp32 and, at 7B-like depth, may give 1e-2 in bf16; a mask that leaks
or positions that are wrong gave more than ten times these."""


def use_kernels(model: Any, training: TrainingConfig) -> None:
    """Have `model` attend in segments, embed patches by a matrix product, end its last layer where a token is predicted alone, and use
    Liger's kernels where they are wanted and there is a GPU and the package for them."""
    use_segments(model, packed=training.batching == "packed")
    multiply_patches(model)
    narrow_last_layer(model)
    if training.fused_kernels == "auto" and torch.cuda.is_available() and importlib.util.find_spec("liger_kernel") is not None:
        fuse(model)


def fuse(model: Any) -> int:
    """Give `model`'s RMSNorms and SwiGLU MLPs, in both of its parts, Liger's kernels; how many modules got one.

    Modules are known by their names and parts, not by their classes: those change with transformers' versions, which Liger's own
    `apply_liger_kernel_to_…` follows late. Rotary embeddings stay as they are: transformers 5 computes them in another form than Liger's.
    """
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    def norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        # "llama": the variance in float32, the product with the weight in the states' own type, as transformers does. Not in place, which
        # would write the gradient over one that may have other readers.
        normed: torch.Tensor = LigerRMSNormFunction.apply(hidden_states, self.weight, self.variance_epsilon, 0.0, "llama", False)
        return normed

    def mlp(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        gated = LigerSiLUMulFunction.apply(self.gate_proj(hidden_states), self.up_proj(hidden_states))
        projected: torch.Tensor = self.down_proj(gated)
        return projected

    num_fused = 0
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = MethodType(norm, module)
        elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj")) and isinstance(module.act_fn, torch.nn.Module):
            if "silu" not in type(module.act_fn).__name__.lower():
                continue
            module.forward = MethodType(mlp, module)
        else:
            continue
        num_fused += 1
    return num_fused


@contextlib.contextmanager
def reference_kernels(model: Any) -> Iterator[None]:
    """In the block, `model` computes as transformers does."""
    fused = [(module, module.__dict__.pop("forward")) for module in model.modules() if _is_fused(module)]
    try:
        with reference_attention(model):
            yield
    finally:
        for module, forward in fused:
            module.forward = forward


_OURS = (__name__, multiply_patches.__module__, narrow_last_layer.__module__)
"""Where forwards that take the place of transformers' own come from."""


def _is_fused(module: Any) -> bool:
    return getattr(module.__dict__.get("forward"), "__module__", None) in _OURS


def check_kernels(engine: Any, batch: MicroBatch, precision: str) -> float:
    """The difference of the losses a token of `batch` by the kernels in use and by transformers' own, the largest of all ranks; every rank
    calls this with its own `batch`.

    Raises `TrainingError` on all of them if it is more than `TOLERANCE`, or the kernels' alone is no number. Trains nothing.
    """
    batch = to_device(batch, engine.device)
    num_tokens = max(1.0, supervised_totals(batch)[0])
    engine.module.eval()  # without dropout, which would draw twice
    with torch.no_grad():
        loss = float(engine.module(**batch)) / num_tokens
        with reference_kernels(engine.module.model):
            expected = float(engine.module(**batch)) / num_tokens
    engine.module.train()
    if not math.isfinite(loss) and not math.isfinite(expected):  # Not the kernels' fault: the step will say whose.
        loss = expected = 0.0
    losses = [(loss, expected)]
    if dist.is_initialized():
        losses = [(0.0, 0.0)] * dist.get_world_size()
        dist.all_gather_object(losses, (loss, expected))
    rank, (loss, expected) = max(enumerate(losses), key=lambda item: _difference(item[1]))
    difference = _difference((loss, expected))
    if difference > TOLERANCE[precision]:
        raise TrainingError(
            f"rank {rank}'s first micro-batch has a loss of {loss:.6f} a token with the kernels in use and {expected:.6f} with "
            "transformers' own; set training.fused_kernels=off or training.batching=padded, and report it with the versions of torch, "
            "transformers, flash-attn and liger-kernel"
        )
    return difference


def _difference(losses: tuple[float, float]) -> float:
    difference = abs(losses[0] - losses[1])
    return math.inf if math.isnan(difference) else difference
