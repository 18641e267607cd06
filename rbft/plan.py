"""What a run would do, said before anything starts: `--dry-run` and `rbft plan`.

    print(format_plan(build_plan(config)))

Reads the manifest or annotations, the headers of a few videos and the model's config.json and tokenizer, as far as they are there; what is
not there is said to be unknown. Loads no weights, starts no process.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rbft.config import APIModelConfig, OptimiserConfig, RunConfig, VideoClassifierConfig
from rbft.data.source import read_examples
from rbft.errors import RBFTError, VideoError
from rbft.models.shape import ModelShape, read_model_shape
from rbft.records import SPLITS, Example, VideoSpec
from rbft.systems import System, parse_systems
from rbft.task import Message
from rbft.training.memory import Remedy, SampleSize, TrainingMemory, remedies, training_memory
from rbft.video.sampling import fit_size, sample_times, video_tokens

if TYPE_CHECKING:
    from rbft.models.chat import ChatAdapter

_NUM_PROBED = 16
_ASSUMED_VIDEO = (30.0, 720, 1280)
"""Seconds, height, width: the typical video where none can be looked at."""
_CHARACTERS_A_TOKEN = 4
_CHAT_FORMAT_TOKENS = 25
"""Qwen's system line and turn markers."""


@dataclass(frozen=True)
class Range:
    """A number for the typical sample and for the largest there can be."""

    typical: int
    most: int

    def __add__(self, other: Range) -> Range:
        return Range(self.typical + other.typical, self.most + other.most)


@dataclass(frozen=True)
class SampleTokens:
    """Tokens of one sample."""

    prompt: Range
    """With the video's context, without the video."""
    video: Range
    answer: int
    """At most."""

    @property
    def total(self) -> Range:
        return self.prompt + self.video + Range(self.answer, self.answer)


@dataclass(frozen=True)
class InferenceStep:
    """Generation, or the evaluation of all systems."""

    name: str
    num_videos: int | None
    num_passes: int
    """How often each video is seen: once for generation, once a system for evaluation."""
    engine: str
    """"vllm", "hf", or "openai" (a server)."""
    num_engines: int
    gpus_per_engine: float
    tokens: SampleTokens


@dataclass(frozen=True)
class TrainingStep:
    """One stage of one system."""

    name: str
    num_samples: int | None
    epochs: int
    num_steps: int | None
    """Optimiser steps."""
    optimiser: OptimiserConfig
    tokens: SampleTokens
    memory: tuple[TrainingMemory, TrainingMemory] | None
    """On one worker, with samples of typical and of largest size; None where the model's shape is unknown."""
    remedies: tuple[Remedy, ...] = ()
    """What to change where the largest samples do not fit the GPU, each on top of those before it, up to the first that makes them fit."""


@dataclass(frozen=True)
class Plan:
    """What `build_plan` found."""

    config: RunConfig
    counts: dict[str, dict[str, int]] | None
    """Split -> label -> videos ("unlabelled" for those without); None where the data cannot be read."""
    shape: ModelShape | None
    video_source: str
    """Where the typical video comes from, in words."""
    steps: tuple[InferenceStep | TrainingStep, ...]
    notes: tuple[str, ...]
    """What is unknown or looks wrong, one line each."""
    gpu_memory_bytes: int | None = None
    """What a training GPU has; None where that is unknown, and on CPU."""


def build_plan(config: RunConfig, gpu_memory_bytes: int | None = None) -> Plan:
    """The plan of `config`. What cannot be read becomes a note, never an error.

    `gpu_memory_bytes` is what a training GPU has; by default that of this machine's first one.
    """
    notes: list[str] = []
    if config.training.num_gpus == 0:
        gpu_memory_bytes = None
    examples = _read_examples(config, notes)
    shape = _read_shape(config, notes)
    if gpu_memory_bytes is None and shape is not None and config.training.num_gpus > 0:
        gpu_memory_bytes = _gpu_memory_bytes()
    video, video_source = _video_tokens(config, shape, examples)
    adapter = _load_adapter(config, notes)
    contexts = _contexts(examples or ())
    train = [example for example in examples or () if example.split == "train"]
    labelled = [example for example in train if example.label is not None]
    # Both stages learn from the same videos (readings, 10), unless the unlabelled are asked for too.
    cohort = train if config.evaluation.takes_unlabelled else labelled

    def count(chosen: Sequence[Example]) -> int | None:
        return None if examples is None else len(chosen)

    task = config.task
    rationale = SampleTokens(_prompt_tokens(task.rationale_messages, contexts, adapter), video, config.generation.max_new_tokens)
    classify = SampleTokens(_prompt_tokens(task.question_messages, contexts, adapter), video, _answer_tokens(task.labels, adapter))
    engine, training = config.engine, config.training
    scored = {config.evaluation.split, *(["validation"] if config.evaluation.calibrate else [])}
    asked = [example for example in examples or () if example.split in scored and example.label is not None]
    steps: list[InferenceStep | TrainingStep] = []
    if config.evaluation.needs_rationales:
        writer, num_gpus = ("openai", 0.0) if config.teacher.server else ("vllm", engine.num_gpus)
        steps.append(InferenceStep("generate rationales", count(cohort), 1, writer, engine.num_actors, num_gpus, rationale))
    for system in parse_systems(config.evaluation.systems):
        told = count(labelled) if system.num_labels is None else system.num_labels
        if system.rationales is not None:
            seen = count(cohort) if system.unlabelled_too else told
            if seen is not None and system.rest == "none":
                seen = system.num_own(seen)
            optimiser = training.optimiser(system.name, "rationale")
            name = f"train {system.name}, stage 1 (rationales)"
            steps.append(_training(name, seen, training.rationale_epochs, optimiser, config, shape, rationale, gpu_memory_bytes))
        if system.classify_times:
            name = f"train {system.name}{', stage 2' if system.rationales else ''} (labels)"
            epochs, optimiser = system.classify_times * training.classify_epochs, training.optimiser(system.name, "classify")
            num_samples = _num_classify_samples(config, system, told, labelled)
            steps.append(_training(name, num_samples, epochs, optimiser, config, shape, classify, gpu_memory_bytes))
    if systems := config.evaluation.systems:
        name, scorer = f"evaluate {', '.join(systems)}", config.evaluation.engine
        steps.append(InferenceStep(name, count(asked), len(systems), scorer, engine.num_actors, engine.num_gpus, classify))
    for model in config.evaluation.api_models:
        notes.append(_sent(model, count(asked), config.video.max_frames))

    for classifier in config.evaluation.video_classifiers:
        notes.append(_specialised(classifier, count(labelled), count(asked)))

    if training.seeds:
        notes.append(f"training.seeds: all training and its evaluation is done {1 + len(training.seeds)} times, once a seed; shown is one")
    counts = None if examples is None else _counts(examples)
    if counts is not None:
        notes += _data_notes(config, len(labelled), len(asked))
    longest = max((step.tokens.total.most for step in steps if isinstance(step, InferenceStep)), default=0)
    if longest > config.engine.max_model_len:
        notes.append(
            f"the largest sample has {longest:,} tokens, engine.max_model_len is {config.engine.max_model_len:,}: such a video becomes an "
            "error row; lower video.max_frames or video.max_pixels, or raise it"
        )
    return Plan(config, counts, shape, video_source, tuple(steps), tuple(notes), gpu_memory_bytes)


def _sent(model: APIModelConfig, num_videos: int | None, max_frames: int) -> str:
    most = min(max_frames, model.max_frames or max_frames)
    return (
        f"evaluate {model.name}: up to {most} frames of each of {_known(num_videos)} videos, the question and the videos' context go to "
        f"{model.url}; what that costs depends on its provider (docs/baselines.md)"
    )


def _specialised(classifier: VideoClassifierConfig, num_videos: int | None, num_asked: int | None) -> str:
    epochs = f"{classifier.epochs} epoch{'s' if classifier.epochs > 1 else ''}"
    # With class_balance "sampling" an epoch has more.
    num_steps = None if num_videos is None else classifier.epochs * math.ceil(num_videos / classifier.global_batch_size)
    least = "at least " if classifier.class_balance == "sampling" else ""
    return (
        f"train {classifier.name}: {_known(num_videos)} videos x {epochs} in batches of {classifier.global_batch_size} = {least}"
        f"{_known(num_steps)} optimiser steps, then {_known(num_asked)} videos to predict"
    )


def _read_examples(config: RunConfig, notes: list[str]) -> list[Example] | None:
    try:
        return read_examples(config.data, config.task, config.seed)
    except RBFTError as error:
        notes.append(f"the number of videos and steps is unknown until the data is there: {error}")
        return None


def _read_shape(config: RunConfig, notes: list[str]) -> ModelShape | None:
    try:
        shape = read_model_shape(config.model.path)
    except RBFTError as error:
        notes.append(f"memory is unknown until the model is there: {error}")
        return None
    side = config.video.spec().patch_multiple
    if shape.token_side != side:
        notes.append(
            f"the model's tokens are squares of {shape.token_side} pixels, frames are cut to multiples of {side}: it is not supported"
        )
    return shape


def _video_tokens(config: RunConfig, shape: ModelShape | None, examples: Sequence[Example] | None) -> tuple[Range, str]:
    spec = config.video.spec()
    side, temporal = (shape.token_side, shape.temporal_patch_size) if shape else (spec.patch_multiple, 2)
    probed = _probe_some(examples or (), spec)
    if probed:
        typical = round(statistics.median(video_tokens(*video, side, temporal) for video in probed))
        source = f"the median of {len(probed)} of the videos"
    else:
        duration_s, height, width = _ASSUMED_VIDEO
        num_frames = len(sample_times(duration_s, None, None, spec).times_s)
        typical = video_tokens(num_frames, *fit_size(height, width, spec), side, temporal)
        source = f"{duration_s:g} s of {width} x {height}, assumed as no video is there to look at"
    most = video_tokens(spec.max_frames, side, spec.max_pixels // side, side, temporal)
    return Range(min(typical, most), most), source


def _probe_some(examples: Sequence[Example], spec: VideoSpec) -> list[tuple[int, int, int]]:
    """(frames, height, width) as the model would see them, of up to `_NUM_PROBED` local videos spread over `examples`."""
    from rbft.video.probe import probe

    found = []
    local = [example for example in examples if "://" not in example.uri]
    for example in local[:: max(1, math.ceil(len(local) / _NUM_PROBED))]:
        try:
            info = probe(example.uri)
            times = sample_times(info.duration_s or 0.0, example.start_s, example.end_s, spec)
        except VideoError:
            continue
        # A quarter turn swaps the sides, which changes the count of tokens by at most a row; not worth a case.
        found.append((len(times.times_s), *fit_size(info.height, info.width, spec)))
    return found


def _contexts(examples: Sequence[Example]) -> tuple[str, str]:
    """The text of middle length that comes with a video, and the longest."""
    texts = sorted((example.context or "" for example in examples), key=len) or [""]
    return texts[len(texts) // 2], texts[-1]


def _load_adapter(config: RunConfig, notes: list[str]) -> ChatAdapter | None:
    if (Path(config.model.path) / "config.json").is_file():
        from rbft.models.chat import ChatAdapter

        try:
            return ChatAdapter(config.model.path, config.video.spec())
        except RBFTError as error:
            notes.append(str(error))
    notes.append(f"text tokens are estimated at {_CHARACTERS_A_TOKEN} characters each until the model's tokenizer is there")
    return None


def _prompt_tokens(ask: Callable[[str | None], list[Message]], contexts: tuple[str, str], adapter: ChatAdapter | None) -> Range:
    """With the context of middle length and with the longest; the video's placeholder not counted."""

    def count(context: str) -> int:
        messages = ask(context or None)
        if adapter is not None:
            return len(adapter.prompt_ids(messages)) - 1
        return _CHAT_FORMAT_TOKENS + math.ceil(len(messages[0]["content"][1]["text"]) / _CHARACTERS_A_TOKEN)

    return Range(*map(count, contexts))


def _answer_tokens(labels: Sequence[str], adapter: ChatAdapter | None) -> int:
    if adapter is not None:
        return max(len(adapter.answer_ids(label)) for label in labels)
    return 1 + max(math.ceil(len(label) / _CHARACTERS_A_TOKEN) for label in labels)


def _training(
    name: str,
    num_samples: int | None,
    epochs: int,
    optimiser: OptimiserConfig,
    config: RunConfig,
    shape: ModelShape | None,
    tokens: SampleTokens,
    gpu_memory_bytes: int | None,
) -> TrainingStep:
    batch = config.training.global_batch_size
    num_steps = None if num_samples is None else epochs * math.ceil(num_samples / batch)
    memory, needed = None, []
    if shape is not None:
        typical = SampleSize(tokens.prompt.typical + tokens.answer, tokens.video.typical, tokens.answer)
        most = SampleSize(tokens.prompt.most + tokens.answer, tokens.video.most, tokens.answer)
        memory = (training_memory(shape, config.training, typical), training_memory(shape, config.training, most))
        if gpu_memory_bytes is not None and memory[1].total > gpu_memory_bytes:
            for remedy in remedies(shape, config.training, most):
                needed.append(remedy)
                if remedy.memory.total <= gpu_memory_bytes:
                    break
    return TrainingStep(name, num_samples, epochs, num_steps, optimiser, tokens, memory, tuple(needed))


def _gpu_memory_bytes() -> int | None:
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def _num_classify_samples(config: RunConfig, system: System, told: int | None, labelled: Sequence[Example]) -> int | None:
    """Samples in an epoch of stage 2: a label each, more of them where rare classes are repeated, and replayed rationales."""
    if told is None:
        return None
    num_labels = told
    if config.training.class_balance == "sampling" and labelled:
        counts = Counter(example.label for example in labelled)
        # Where fewer labels are told of, their classes are drawn; about as here.
        num_labels = round(told * len(counts) * max(counts.values()) / len(labelled))
    share = config.training.replay_share if system.rationales is not None else 0.0
    return num_labels + round(num_labels * share / (1 - share))


def _counts(examples: Sequence[Example]) -> dict[str, dict[str, int]]:
    return {
        split: dict(sorted(Counter(example.label or "unlabelled" for example in examples if example.split == split).items()))
        for split in SPLITS
        if any(example.split == split for example in examples)
    }


def _data_notes(config: RunConfig, num_labelled: int, num_asked: int) -> list[str]:
    notes = []
    if num_labelled == 0:
        notes.append("no labelled video is in the split train: nothing can be trained; check labels and splits")
    if num_asked == 0:
        notes.append(f"no labelled video is in the split {config.evaluation.split}: nothing can be evaluated; check evaluation.split")
    return notes


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
        f"{_known(step.num_samples)} samples x {epochs} = {_known(step.num_steps)} optimiser steps, {rates}",
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
    lines = [f"{_known(step.num_videos)} videos{systems}; {engines}, {_devices(step.num_engines, step.gpus_per_engine)}"]
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


def _known(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.2f}M" if number >= 1e6 else f"{number:,}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
