"""DeepSpeed around the model: configuration, initialisation, one optimiser step, whole weights.

We build the optimiser and set its rates ourselves: a DeepSpeed `optimizer` or `scheduler` block would drop the per-module rates
(`rbft.config` refuses them, `check_rates` reads back what the engine really uses).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from rbft.config import OptimiserConfig, TrainingConfig
from rbft.errors import ConfigError, TrainingError
from rbft.models.adapters import add_adapters, is_adapter
from rbft.models.batches import MicroBatch, to_device
from rbft.models.parameter_groups import build_parameter_groups, freeze_parts
from rbft.models.patches import PatchLayout
from rbft.training.activations import recompute_activations
from rbft.training.kernels import use_kernels
from rbft.training.loss import SupervisedLoss, supervised_totals
from rbft.training.schedule import cosine_with_warmup


def deepspeed_config(training: TrainingConfig, max_grad_norm: float) -> dict[str, Any]:
    """The JSON DeepSpeed gets: the run's `training.deepspeed` plus what this project sets itself."""
    return {
        **training.deepspeed,
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": training.accumulation_steps,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": training.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": 2**62,
    }


def build_engine(
    model: Any, training: TrainingConfig, optimiser: OptimiserConfig, patches: PatchLayout | None = None, seed: int = 0
) -> Any:
    """A DeepSpeed engine around `SupervisedLoss(model, patches)`, in an already initialised torch.distributed process group.

    `seed` is where new adapters begin. Raises `TrainingError` if the process group has another size than `training.num_workers`,
    `ConfigError` if DeepSpeed cannot compile here what `training.deepspeed` asks for.
    """
    import deepspeed

    # DeepSpeed's all-reduce through shared memory, for ranks on one machine's CPUs: it is compiled at first use, and a worker killed
    # meanwhile leaves a lock that every later start waits for, for ever. Also, groups without a MASTER_PORT of their own share its memory.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if dist.get_world_size() != training.num_workers:
        raise TrainingError(f"training.num_workers is {training.num_workers}, the process group has {dist.get_world_size()} workers")
    if training.lora is not None:
        add_adapters(model, training.lora, seed)
    freeze_parts(model, training.freeze)
    if training.gradient_checkpointing:
        recompute_activations(model)
    use_kernels(model, training)
    model.train()
    module = SupervisedLoss(model, patches)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=_make_adamw(build_parameter_groups(module, optimiser, training.frozen_parts), training, optimiser),
        config=deepspeed_config(training, optimiser.max_grad_norm),
        dist_init_required=False,
    )
    if dist.get_world_size() == 1 and not engine.zero_optimization():
        # There is nobody to agree with, and DeepSpeed would copy all gradients together and apart again at every step.
        engine.enable_backward_allreduce = False
    return engine


def _make_adamw(groups: list[dict[str, Any]], training: TrainingConfig, optimiser: OptimiserConfig) -> torch.optim.Optimizer:
    """AdamW over `groups`: PyTorch's, or where its state is offloaded DeepSpeed's for the CPU, which it insists on."""
    devices = {training.offload_device("optimizer"), training.offload_device("param")}
    if "nvme" in devices:
        from deepspeed.ops.op_builder import AsyncIOBuilder

        if not AsyncIOBuilder().is_compatible(verbose=False):
            raise ConfigError(
                "training.deepspeed offloads to NVMe, and DeepSpeed's async_io cannot be compiled here; install libaio's headers "
                "(Debian, Ubuntu: apt install libaio-dev) on every node, or offload to the CPU (device: cpu)"
            )
    if training.offload_device("optimizer") == "none":
        # Fused: one pass over the weights, on CPUs too.
        return torch.optim.AdamW(groups, betas=optimiser.betas, eps=optimiser.eps, fused=True)
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    adamw: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, betas=optimiser.betas, eps=optimiser.eps, adamw_mode=True)
    return adamw


def free_engine(engine: Any) -> None:
    """Give back what `engine`, the only one in this process, holds: stages run one after the other and need the memory."""
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    engine.destroy()
    # DeepSpeed 0.19 keeps modules of a ZeRO-3 engine in two global places, and with them weights, hooks and optimiser: this list (the root,
    # and those whose recomputation stopped early under gradient checkpointing) and the cache of this method, which is wrapped once more.
    parameter_offload.FWD_MODULE_STACK.clear()
    cached = vars(PartitionedParameterCoordinator)["_PartitionedParameterCoordinator__params_to_release"]
    inspect.getclosurevars(cached).nonlocals["func"].cache_clear()


def set_rates(engine: Any, step: int, num_steps: int, warmup_ratio: float) -> dict[str, float]:
    """Set every group's learning rate for optimiser step `step`; what the engine then holds, by group name."""
    factor = cosine_with_warmup(step, num_steps, warmup_ratio)
    for group in engine.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return {f"lr_{group['name']}": float(group["lr"]) for group in engine.optimizer.param_groups}


def check_rates(engine: Any, training: TrainingConfig, optimiser: OptimiserConfig) -> None:
    """Raise `TrainingError` unless the engine has the groups that `build_parameter_groups` makes of its model, with their rates and decay.

    To be asked again when a checkpoint was loaded: DeepSpeed takes the groups' settings out of it.
    """
    wanted = _group_settings(build_parameter_groups(engine.module, optimiser, training.frozen_parts))
    found = _group_settings(engine.optimizer.param_groups)
    if found != wanted:
        raise TrainingError(
            "DeepSpeed lost a parameter group, or its learning rate or weight decay; check training.deepspeed. (name, rate, decay) of its "
            f"groups: {', '.join(found)}; they should be: {', '.join(wanted)}"
        )


def _group_settings(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted(f"({group.get('name')}, {group.get('peak_lr')}, {group.get('weight_decay')})" for group in groups)


@dataclass(frozen=True)
class StepOutcome:
    """What one call of `forward_backward` found; the same on every rank."""

    loss: float
    """Mean over the global batch's supervised tokens, weighted if they are."""
    num_tokens: int
    """Supervised ones in the global batch."""
    flags: tuple[float, ...]
    """The largest of all ranks, of each flag that was given."""
    bad_ranks: tuple[int, ...]
    """Those whose loss was NaN or infinite."""

    @property
    def is_finite(self) -> bool:
        """Whether the loss was finite on every rank. If not, the optimiser step has not been taken and the gradients are worthless."""
        return not self.bad_ranks


def forward_backward(engine: Any, micro_batches: Sequence[MicroBatch], flags: Sequence[float] = ()) -> StepOutcome:
    """Accumulate the gradient of the token mean over the global batch, and take the optimiser step if its loss is finite on all ranks.

    Every rank brings its micro-batches and its `flags`, as many of them everywhere: what one rank wants all to know, such as that it has
    been told to stop. They travel with the loss, before the step and at no cost of their own.

    DeepSpeed averages gradients over ranks, so each rank's summed loss is scaled by world size / global weight of the supervised tokens
    (their number, unless they are weighted). The optimiser step is taken by the last `engine.step()`.
    """
    device = engine.device
    totals = torch.tensor([supervised_totals(batch) for batch in micro_batches], dtype=torch.float64).sum(dim=0).to(device)
    dist.all_reduce(totals)
    num_tokens, weight = totals.tolist()
    scale = dist.get_world_size() / (weight or 1.0)
    here = torch.tensor([0.0, *flags], dtype=torch.float64, device=device)
    for number, batch in enumerate(micro_batches, start=1):
        loss = engine(**to_device(batch, device))
        engine.backward(loss * scale, scale_wrt_gas=False)
        here[0] += loss.detach().double()
        if number < len(micro_batches):
            engine.step()
    everywhere = [torch.empty_like(here) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, here)
    found = torch.stack(everywhere).cpu()
    bad_ranks = tuple((~found[:, 0].isfinite()).nonzero()[:, 0].tolist())
    if not bad_ranks:
        engine.step()
    return StepOutcome(float(found[:, 0].sum()) / (weight or 1.0), int(num_tokens), tuple(found[:, 1:].amax(dim=0).tolist()), bad_ranks)


def whole_state_dict(engine: Any, adapters_only: bool = False) -> dict[str, torch.Tensor] | None:
    """The model's weights, tied ones once, on rank 0; None on the other ranks. Every rank calls this.

    With `adapters_only` those of the adapters alone: the others are as they were loaded. Under ZeRO-3 they are gathered one by one into
    the CPU's memory; else they are the model's own tensors, not copies.
    """
    import deepspeed

    is_writer = dist.get_rank() == 0
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in engine.module.model.named_parameters():
        if adapters_only and not is_adapter(name):
            continue
        if hasattr(parameter, "ds_id"):
            with deepspeed.zero.GatheredParameters([parameter]):
                if is_writer:
                    weights[name] = parameter.detach().cpu().clone()
        elif is_writer:
            weights[name] = parameter.detach()
    return weights if is_writer else None
