"""A plan in words."""

from __future__ import annotations

from rbft.config import RunConfig
from rbft.plan.steps import InferenceStep, Plan, Range, SampleTokens, TrainingStep


def format_plan(plan: Plan) -> str:
    """The text to print."""
    config, shape = plan.config, plan.shape
    lines = [f"Plan of {config.name} (nothing has been started)", f"  run folder  {config.run_dir}", f"  task        {_task_line(config)}"]
    if shape is None:
        lines.append(f"  model       {config.model.path}")
    else:
        parts = f"{_count(shape.num_parameters)} parameters, {_count(shape.num_vision_parameters)} of them in the vision tower"
        lines.append(f"  model       {config.model.path}: {shape.name}, {parts}")
    lines.append(f"  videos      {_videos_line(plan)}")
    lines.append(f"  typical     {plan.video_source}")
    for number, step in enumerate(plan.steps, start=1):
        lines.append("")
        lines.append(f"  {number}. {step.name}")
        details = _training_lines(step, config, plan.gpu_memory_bytes) if isinstance(step, TrainingStep) else _inference_lines(step, plan)
        lines += [f"     {line}" for line in details]
    if plan.notes:
        lines += ["", "  Notes", *(f"  - {note}" for note in plan.notes)]
    return "\n".join(lines)


def _task_line(config: RunConfig) -> str:
    return f"{config.task.name}: {', '.join(config.task.labels)}"


def _videos_line(plan: Plan) -> str:
    if plan.counts is None:
        return "unknown"
    splits = [
        f"{split} {sum(labels.values()):,} ({', '.join(f'{label} {number:,}' for label, number in labels.items())})"
        for split, labels in plan.counts.items()
    ]
    return ", ".join(splits)


def _training_lines(step: TrainingStep, config: RunConfig, gpu_memory_bytes: int | None) -> list[str]:
    training = config.training
    epochs = f"{step.epochs} epoch{'s' if step.epochs > 1 else ''}"
    workers = f"{training.num_workers} workers x {training.micro_batch_size} x {training.accumulation_steps} accumulated"
    seen = None if step.num_samples is None else step.num_samples * step.epochs
    rates = f"learning rate {step.optimiser.lr_language:g}, in the vision tower {step.optimiser.lr_vision:g}"
    lines = [
        f"{known(step.num_samples)} samples x {epochs} = {known(step.num_steps)} optimiser steps, {rates}",
        f"global batch {training.global_batch_size} = {workers}; {_devices(training.num_workers, training.num_gpus)}, {training.precision}",
        _tokens_line(step.tokens, seen),
    ]
    if training.lora is not None:
        lines[0] += f", of adapters of rank {training.lora.rank}"
    if training.freeze:
        lines[0] += f"; frozen: {', '.join(training.freeze)}"
    where = "GPU" if training.num_gpus > 0 else "worker"
    if step.memory is None:
        return [*lines, f"memory a {where}: unknown"]
    typical, most = step.memory
    of = "" if gpu_memory_bytes is None else f" of {_size(gpu_memory_bytes)}"
    offloaded = f", offloaded {_size(typical.offloaded)}" if typical.offloaded else ""
    return [
        *lines,
        f"memory a {where}: about {_size(typical.total)}, at most {_size(most.total)}{of}, under ZeRO-{training.zero_stage}",
        f"  parameters {_size(typical.parameters)}, gradients {_size(typical.gradients)}, optimiser {_size(typical.optimiser)}, "
        f"buffers {_size(typical.buffers)}, activations {_size(typical.activations)} to {_size(most.activations)}{offloaded}",
        *_advice_lines(step, gpu_memory_bytes),
    ]


def _advice_lines(step: TrainingStep, gpu_memory_bytes: int | None) -> list[str]:
    """What to change in `training`, in the order to try it, where the largest samples do not fit."""
    if gpu_memory_bytes is None or step.memory is None or step.memory[1].total <= gpu_memory_bytes:
        return []
    lines = ["  the largest samples do not fit; in `training`, each on top of those before:"]
    lines += [f"  - {remedy.change}: at most {_size(remedy.memory.total)}" for remedy in step.remedies]
    if not step.remedies or step.remedies[-1].memory.total > gpu_memory_bytes:
        lines.append("  and that is not enough: lower video.max_frames or video.max_pixels, or take larger GPUs or more of them")
    return lines


def _inference_lines(step: InferenceStep, plan: Plan) -> list[str]:
    engine = {"vllm": "vLLM engine", "hf": "transformers engine", "openai": "client"}[step.engine]
    engines = f"{step.num_engines} {engine}{'s' if step.num_engines > 1 else ''}"
    seen = None if step.num_videos is None else step.num_videos * step.num_passes
    systems = f" x {step.num_passes} systems" if step.num_passes > 1 else ""
    lines = [f"{known(step.num_videos)} videos{systems}; {engines}, {_devices(step.num_engines, step.gpus_per_engine)}"]
    if plan.shape is not None and step.engine != "openai":
        width = 4 if plan.config.model.dtype == "float32" else 2
        lines[0] += f", weights {_size(plan.shape.num_parameters * width)} each"
    return [*lines, _tokens_line(step.tokens, seen)]


def _tokens_line(tokens: SampleTokens, num_seen: int | None) -> str:
    prompt, video = (_range(numbers) for numbers in (tokens.prompt, tokens.video))
    line = f"tokens a sample: prompt {prompt}, video {video}, answer at most {tokens.answer:,}"
    return line if num_seen is None else f"{line}; about {_count(num_seen * tokens.total.typical)} in all"


def _range(numbers: Range) -> str:
    return f"{numbers.typical:,}" if numbers.typical == numbers.most else f"{numbers.typical:,} (at most {numbers.most:,})"


def _devices(count: int, gpus_each: float) -> str:
    if gpus_each == 0:
        return "on CPU"
    total = count * gpus_each
    return f"{total:g} GPU{'' if total == 1 else 's'}"


def known(number: int | None) -> str:
    """The number, or "?"."""
    return "?" if number is None else f"{number:,}"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.2f}M" if number >= 1e6 else f"{number:,}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
