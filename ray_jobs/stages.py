"""What the systems of a run have to be trained on: their stages, each with its samples, its fingerprint and its folder.

    direct-sft-…    classify
    rb-ft…          rationale, then classify from the model that stage 1 made (M_inter)

`rbft.systems` says what the names mean. A stage that two systems share is planned once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.generate import read_rationales
from ray_jobs.progress import say
from ray_jobs.run import Run
from ray_jobs.training_workers import places
from rbft import artifacts
from rbft.config import ModelConfig
from rbft.data.samples import (
    TrainingItem,
    class_weights,
    classify_items,
    draw_items,
    human_rationales,
    label_subset,
    own_subset,
    rationale_items,
    replay_items,
    shuffled_rationales,
)
from rbft.errors import DataError
from rbft.layout import Stage
from rbft.model_store import is_remote
from rbft.rationales.quality import judge
from rbft.rationales.review import apply_changes, read_changes
from rbft.records import Example
from rbft.systems import System, parse_systems
from rbft.training.order import balanced_epoch
from rbft.training.stage import StageSpec


@dataclass(frozen=True)
class PlannedStage:
    """One stage of one system of one run, with its items."""

    run: Run
    system: str
    stage: Stage
    spec: StageSpec
    items: list[TrainingItem]


def plan_stages(run: Run) -> list[PlannedStage]:
    """The stages the run's systems need, each once, in the order they must run. Raises `DataError` if the stages' cohorts differ."""
    config, task = run.config, run.config.task
    cohort = run.cohort()
    own: dict[str, str] = {}
    unfit: set[str] = set()
    if config.evaluation.needs_rationales:
        folder = run.layout.rationales(run.rationale_fingerprint())
        reviewed, unfit = apply_changes(read_rationales(run), read_changes(folder), task)
        written = [row for row in reviewed if row.text is not None]
        own = {row.id: str(row.text) for row in written}
        if changed := [row for row in written if "review" in row.provenance]:
            say(f"train: of {len(own)} rationales a review leaves {len(unfit)} out of stage 1 and edits {len(changed) - len(unfit)}")
        if config.gates.profile != "paper":
            labels = {example.id: example.label for example in cohort}
            kept = [row for row in written if row.id not in unfit]
            failing = {verdict.rationale.id for verdict in judge(kept, task, labels, config.gates.drop) if verdict.failed}
            unfit |= failing
            say(f"train: stage 1 leaves out {len(failing)} of {len(own)} rationales, which do not pass the gates")
        # All systems learn from the same videos: those whose rationale could be written.
        cohort = [example for example in cohort if example.id in own]
        _check_some(cohort, "has a rationale")
    stages: dict[str, PlannedStage] = {}
    for system in parse_systems(config.evaluation.systems):
        if not system.classify_times:
            continue
        labelled = [example for example in cohort if example.label is not None]
        if system.num_labels is not None:
            labelled = label_subset(cohort, system.num_labels, config.seed)
        items = classify_items(task, labelled)
        _check_some(items, "has a label")
        start = None
        if system.rationales is not None:
            seen = cohort if system.unlabelled_too else labelled
            if not {item.example.id for item in items} <= {example.id for example in seen}:
                raise DataError("stage 2 would see labelled videos that stage 1 did not; this is a bug, report it")
            texts = _rationale_texts(system, seen, own, unfit, config.seed)
            first = rationale_items(task, seen, texts, system.target)
            _check_some(first, "has a rationale that passes the gates")
            start = _stage(run, system.name, "rationale", None, config.training.rationale_epochs, _rationale_samples(run, first), stages)
        samples = _classify_samples(run, items, [] if start is None else start.items)
        _stage(run, system.name, "classify", start, system.classify_times * config.training.classify_epochs, samples, stages)
    return list(stages.values())


@dataclass(frozen=True)
class _Samples:
    """What a stage sees, and the fields of `StageSpec` that say how."""

    items: list[TrainingItem]
    classes: tuple[str | None, ...] = ()
    num_replay: int = 0
    validation: tuple[TrainingItem, ...] = ()
    held_out: tuple[TrainingItem, ...] = ()
    probe: tuple[TrainingItem, ...] = ()

    def determines(self) -> dict[str, Any]:
        """For the fingerprint: only what is used, so that a stage which uses none of it stays the one it was before there was any."""
        found = {"items": [_item_key(item) for item in self.items], "classes": self.classes, "num_replay": self.num_replay}
        return {name: value for name, value in found.items() if value or name == "items"}


def _item_key(item: TrainingItem) -> list[Any]:
    example = item.example
    key = [example.id, example.sha256, example.start_s, example.end_s, list(item.messages), item.answer]
    return key if item.weight == 1 else [*key, item.weight]


def _rationale_samples(run: Run, rationales: list[TrainingItem]) -> _Samples:
    """Stage 1's samples, without those that `training.rationale_validation_share` holds out."""
    count = round(run.config.training.rationale_validation_share * len(rationales))
    held_out = draw_items(rationales, count, "held-out rationale", run.config.seed)
    ids = {item.example.id for item in held_out}
    return _Samples([item for item in rationales if item.example.id not in ids], held_out=held_out)


def _classify_samples(run: Run, labels: list[TrainingItem], rationales: list[TrainingItem]) -> _Samples:
    """Stage 2's samples of the label items and of stage 1's `rationales`, as `training.class_balance` and `training.replay_share` say."""
    training, seed = run.config.training, run.config.seed
    classes: tuple[str | None, ...] = ()
    if training.class_balance == "sampling":
        classes = tuple(item.answer for item in labels)
    elif training.class_balance == "loss":
        labels = class_weights(labels)
    num_labels = len(balanced_epoch(classes, seed, 0)) if classes else len(labels)
    replayed = replay_items(rationales, num_labels, training.replay_share, seed) if rationales else []
    return _Samples(
        items=[*labels, *replayed],
        classes=(*classes, *([None] * len(replayed))) if classes else (),
        num_replay=len(replayed),
        validation=_validation_items(run),
        probe=draw_items(rationales, training.rationale_probe, "probe", seed),
    )


def _validation_items(run: Run) -> tuple[TrainingItem, ...]:
    """What is scored while stage 2 trains, none where validation is off. Raises `DataError` if the manifest has no such split."""
    validation = run.config.training.validation
    if not validation.is_on:
        return ()
    items = classify_items(run.config.task, run.split("validation"))
    if not items:
        raise DataError(
            "training.validation is on, and no labelled video is in the split validation; give it a share of the videos, e.g. "
            "data.fractions={train: 0.7, validation: 0.1, test: 0.2}, or name them in the annotations or data.split_file"
        )
    return draw_items(items, validation.max_videos, "validation", run.config.seed)


def _rationale_texts(system: System, examples: list[Example], own: dict[str, str], unfit: set[str], seed: int) -> dict[str, str]:
    """Id -> what stage 1 of `system` learns to say about it, for those of `examples` that it sees: not those whose rationale is `unfit`."""
    if system.rationales == "human":
        return human_rationales(examples)
    chosen = own_subset(examples, system.num_own(len(examples)), seed)
    texts = {example.id: own[example.id] for example in examples if example.id in chosen - unfit}
    if system.rationales == "shuffled":
        return shuffled_rationales(texts, seed)
    if system.rest == "human":
        return texts | human_rationales(example for example in examples if example.id not in chosen)
    return texts


def _check_some(found: list[Any], what: str) -> None:
    if not found:
        raise DataError(f"no training video {what}; check the splits of the manifest and the errors of the generate step")


def _stage(
    run: Run,
    system: str,
    stage: Stage,
    start: PlannedStage | None,
    epochs: int,
    samples: _Samples,
    planned: dict[str, PlannedStage],
) -> PlannedStage:
    """The stage, added to `planned` by its fingerprint; the one that is there already if another system's is the same."""
    config = run.config
    items, optimiser = samples.items, config.training.optimiser(system, stage)
    base = run.model_fingerprint if start is None else start.spec.fingerprint
    determines = {
        "kind": "stage",
        "start": base,
        "precision": config.training.precision,
        # Not over how many workers and micro-batches it is spread: that changes rounding only, and a stage goes on with others.
        "batch": config.training.global_batch_size,
        "optimiser": optimiser.model_dump(mode="json"),
        "deepspeed": config.training.deepspeed,
        "gradient_checkpointing": config.training.gradient_checkpointing,
        # Only where they are used: a stage without them is the one that it was before there were any.
        **({"lora": config.training.lora.model_dump(mode="json")} if config.training.lora else {}),
        **({"freeze": sorted(config.training.freeze)} if config.training.freeze else {}),
        "attention": config.model.attention,
        "batching": config.training.batching,
        "fused_kernels": config.training.fused_kernels,
        "epochs": epochs,
        "seed": config.seed,
        "video": [config.video.fps, config.video.min_frames, config.video.max_frames, config.video.max_pixels, config.video.min_pixels],
        **samples.determines(),
    }
    if samples.validation:
        settings = config.training.validation.model_dump(mode="json", exclude={"max_videos"})
        determines["validation"] = [settings, [_item_key(item) for item in samples.validation]]
    fingerprint = artifacts.fingerprint(determines)
    if fingerprint in planned:
        run.record_artifact(f"train/{system}/{stage}", run.layout.train(planned[fingerprint].system, stage, fingerprint))
        return planned[fingerprint]
    folder = run.layout.train(system, stage, fingerprint)
    run.record_artifact(f"train/{system}/{stage}", folder)
    spec = StageSpec(
        name=f"{system}/{stage}",
        **places(run, folder),
        fingerprint=fingerprint,
        model=_start_model(config.model, None if start is None else f"{start.spec.home}/final"),
        task=config.task,
        video=config.video,
        training=config.training,
        optimiser=optimiser,
        epochs=epochs,
        seed=config.seed,
        max_bad_fraction=config.data.max_bad_fraction,
        classes=samples.classes,
        num_replay=samples.num_replay,
        validation=samples.validation,
        held_out=samples.held_out,
        probe=samples.probe,
        lineage={
            "run": config.name,
            "system": system,
            "stage": stage,
            "base": base,
            "seed": config.seed,
            "epochs": epochs,
            "optimiser": determines["optimiser"],
            "num_items": len(items),
            **_beyond_the_paper(run, samples),
            # Stages that see the same videos in the same order, or the same answers, have these in common.
            "videos": artifacts.fingerprint([item.example.id for item in items]),
            "answers": artifacts.fingerprint([item.answer for item in items]),
            # For the model card.
            "base_model": Path(config.model.path).name,
            "classes": dict(sorted(Counter(item.example.label or "unlabelled" for item in items).items())),
            "split": artifacts.fingerprint([[example.id, example.sha256, example.split] for example in run.examples]),
            "versions": run.fact("versions"),
        },
    )
    planned[fingerprint] = PlannedStage(run, system, stage, spec, items)
    return planned[fingerprint]


def _start_model(base: ModelConfig, trained: str | None) -> ModelConfig:
    """The base model, or the one in the folder or store `trained` in its place; with a path that holds on every node."""
    path = trained or base.path
    if is_remote(path):
        return base if trained is None else base.model_copy(update={"path": path, "fingerprint": None})
    return base.model_copy(update={"path": str(Path(path).absolute()), "fingerprint": None})


def _beyond_the_paper(run: Run, samples: _Samples) -> dict[str, Any]:
    """For the lineage: what of the options that the paper does not have this stage uses."""
    training = run.config.training
    used: dict[str, Any] = {}
    if samples.classes or any(item.weight != 1 for item in samples.items):
        used["class_balance"] = training.class_balance
    if samples.num_replay:
        used["num_replay"] = samples.num_replay
    if samples.held_out:
        used["num_held_out_rationales"] = len(samples.held_out)
    if samples.validation:
        used["validation"] = training.validation.model_dump(mode="json") | {"num_videos": len(samples.validation)}
    return used
