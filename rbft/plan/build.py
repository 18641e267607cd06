"""From a configuration, and the data and model it names, to the plan."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rbft.config import APIModelConfig, OptimiserConfig, RunConfig, VideoClassifierConfig
from rbft.data.source import read_examples
from rbft.errors import RBFTError
from rbft.models.shape import ModelShape, read_model_shape
from rbft.plan.steps import InferenceStep, Plan, SampleTokens, TrainingStep
from rbft.plan.text import known
from rbft.plan.tokens import answer_tokens, contexts_of, count_video_tokens, load_adapter, prompt_tokens
from rbft.records import SPLITS, Example
from rbft.systems import System, parse_systems
from rbft.training.memory import SampleSize, remedies, training_memory


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
    video, video_source = count_video_tokens(config, shape, examples)
    adapter = load_adapter(config, notes)
    contexts = contexts_of(examples or ())
    train = [example for example in examples or () if example.split == "train"]
    labelled = [example for example in train if example.label is not None]
    # Both stages learn from the same videos (readings, 10), unless the unlabelled are asked for too.
    cohort = train if config.evaluation.takes_unlabelled else labelled

    def count(chosen: Sequence[Example]) -> int | None:
        return None if examples is None else len(chosen)

    task = config.task
    rationale = SampleTokens(prompt_tokens(task.rationale_messages, contexts, adapter), video, config.generation.max_new_tokens)
    classify = SampleTokens(prompt_tokens(task.question_messages, contexts, adapter), video, answer_tokens(task.labels, adapter))
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
            if seen is not None:
                seen -= round(training.rationale_validation_share * seen)
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
        f"evaluate {model.name}: up to {most} frames of each of {known(num_videos)} videos, the question and the videos' context go to "
        f"{model.url}; what that costs depends on its provider (docs/baselines.md)"
    )


def _specialised(classifier: VideoClassifierConfig, num_videos: int | None, num_asked: int | None) -> str:
    epochs = f"{classifier.epochs} epoch{'s' if classifier.epochs > 1 else ''}"
    # With class_balance "sampling" an epoch has more.
    num_steps = None if num_videos is None else classifier.epochs * math.ceil(num_videos / classifier.global_batch_size)
    least = "at least " if classifier.class_balance == "sampling" else ""
    return (
        f"train {classifier.name}: {known(num_videos)} videos x {epochs} in batches of {classifier.global_batch_size} = {least}"
        f"{known(num_steps)} optimiser steps, then {known(num_asked)} videos to predict"
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
