"""Where a run is, told from its folder alone: no Ray, no engine, from any machine that sees the folder.

status = read_status("runs/miniature"); print(format_status(status))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa
import yaml

from rbft import artifacts, attempts, lease, rows, storage
from rbft.config import RunConfig
from rbft.data.manifest import read_manifest
from rbft.errors import ArtifactError
from rbft.layout import RunLayout
from rbft.records import Example, prediction_schema, rationale_schema
from rbft.systems import parse_systems

State = Literal["done", "begun", "to do"]
_PARTS_OF_PATH = {"rationales": 2, "train": 4, "evaluation": 3, "calibration": 3}
"""How many parts of an artifact's path lie within the run's folder, which may have been moved since it was written down."""


@dataclass(frozen=True)
class Step:
    """Something that the run has to make."""

    name: str
    state: State
    done: int | None = None
    """How far it is, where that is counted: in `unit`."""
    total: int | None = None
    unit: str = ""
    checkpoint: int | None = None
    """Of training: the step after which it would go on."""
    loss: float | None = None
    errors: dict[str, int] = field(default_factory=dict)
    """Error code -> videos that could not be used."""
    num_suspects: int = 0
    """Videos that were in an engine which died; they are tried again one at a time."""


@dataclass(frozen=True)
class RunStatus:
    folder: str
    name: str
    command: str | None
    """Of the last job."""
    job: dict[str, Any] | None
    """The job that works there now, as its lease says it; None if there is none."""
    steps: tuple[Step, ...]
    timeline: tuple[dict[str, Any], ...]
    """What ran when: `step`, `began`, `ended` (missing if it was killed or still runs), `error` (if it failed), `host`."""

    @property
    def is_done(self) -> bool:
        return all(step.state == "done" for step in self.steps)

    @property
    def ended(self) -> str | None:
        """How the last job ended before everything was done; None if one works there, all is done, or none was started yet."""
        if self.job is not None or self.is_done or not self.timeline:
            return None
        last = self.timeline[-1]
        if "ended" not in last:
            return f"died in {last['step']} (killed, or its machine went)"
        return f"failed in {last['step']}: {last['error']}" if "error" in last else None

    @property
    def advice(self) -> str:
        """What to do next."""
        num_errors = sum(sum(step.errors.values()) for step in self.steps)
        again = f"; with --retry-errors, the {num_errors} videos with errors are tried again" if num_errors else ""
        if self.job is not None:
            return "wait: a job works there"
        if self.is_done:
            return f"all is done: see {self.folder}/report.html{again}"
        return f"submit it again, it goes on where it stopped{again}: {self.command}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"is_done": self.is_done, "ended": self.ended, "advice": self.advice}


def read_status(folder: str) -> RunStatus:
    """The status of the run in `folder`, a path or URI; raises `ArtifactError` if there is none."""
    layout = RunLayout(folder.rstrip("/"))
    if not storage.exists(layout.config) or not storage.exists(layout.run_json):
        raise ArtifactError(
            f"{storage.shown(folder)}: no run is there (no config.yaml or run.json); give <output_dir>/<name> of its run file"
        )
    config = RunConfig.model_validate(yaml.safe_load(storage.read_bytes(layout.config)))
    facts = storage.read_json(layout.run_json)
    return RunStatus(
        folder=layout.root,
        name=config.name,
        command=facts.get("command"),
        job=lease.holder(layout.root),
        steps=tuple(_Reader(layout, config, facts.get("artifacts", {})).steps()),
        timeline=tuple(facts.get("timeline", ())),
    )


class _Reader:
    def __init__(self, layout: RunLayout, config: RunConfig, recorded: dict[str, str]) -> None:
        self._layout, self._config, self._recorded = layout, config, recorded
        has_manifest = storage.exists(layout.manifest)
        self._examples: list[Example] | None = read_manifest(layout.manifest) if has_manifest else None

    def steps(self) -> Iterator[Step]:
        config = self._config
        num_videos = None if self._examples is None else len(self._examples)
        yield Step("manifest", "to do" if num_videos is None else "done", num_videos, num_videos, "videos")
        if config.evaluation.needs_rationales:
            yield self._rows("rationales", "rationales", rationale_schema(), self._num_to_write())
        seeds = ["", *(f"seed-{seed}/" for seed in config.training.seeds)]
        for prefix in seeds:
            for name in self._stages():
                yield self._training(f"train {prefix}{name}", f"{prefix}train/{name}")
        for prefix in seeds:
            for system in config.evaluation.all_systems:
                if not prefix or system in self._trained():
                    yield self._predictions(f"evaluate {prefix}{system}", f"{prefix}evaluation/{system}", config.evaluation.split)
        for system in config.evaluation.systems if config.evaluation.calibrate else ():
            yield self._predictions(f"calibrate {system}", f"calibration/{system}", "validation")
        has_report = storage.exists(self._layout.report) and storage.exists(self._layout.summary)
        yield Step("report", "done" if has_report else "to do")

    def _trained(self) -> list[str]:
        classifiers = [classifier.name for classifier in self._config.evaluation.video_classifiers]
        return [*classifiers, *(each.name for each in parse_systems(self._config.evaluation.systems) if each.classify_times)]

    def _stages(self) -> Iterator[str]:
        """ "system/stage" of all that is trained, in order."""
        has_first = {each.name for each in parse_systems(self._config.evaluation.systems) if each.rationales is not None}
        for system in self._trained():
            if system in has_first:
                yield f"{system}/rationale"
            yield f"{system}/classify"

    def _num_to_write(self) -> int | None:
        unlabelled_too = self._config.evaluation.takes_unlabelled
        return self._count(lambda example: example.split == "train" and (example.label is not None or unlabelled_too))

    def _predictions(self, name: str, artifact: str, split: str) -> Step:
        num_videos = self._count(lambda example: example.split == split and example.label is not None)
        return self._rows(name, artifact, prediction_schema(), num_videos)

    def _count(self, is_meant: Any) -> int | None:
        return None if self._examples is None else sum(map(is_meant, self._examples))

    def _folder(self, artifact: str) -> str | None:
        recorded = self._recorded.get(artifact)
        if recorded is None:
            return None
        kind = next(part for part in artifact.split("/") if part in _PARTS_OF_PATH)
        return "/".join([self._layout.root, *recorded.rstrip("/").split("/")[-_PARTS_OF_PATH[kind] :]])

    def _rows(self, name: str, artifact: str, schema: pa.Schema, total: int | None) -> Step:
        folder = self._folder(artifact)
        if folder is None:
            return Step(name, "to do", 0, total, "videos")
        try:
            codes = rows.outcomes(folder, schema)
        except ArtifactError:
            if not artifacts.is_complete(folder):
                raise
            codes = rows.outcomes(folder, schema)  # its parts were joined while they were read
        errors: dict[str, int] = {}
        for code in codes.values():
            if code is not None:
                errors[code] = errors.get(code, 0) + 1
        state: State = "done" if artifacts.is_complete(folder) else "begun" if codes else "to do"
        return Step(name, state, len(codes), total, "videos", errors=errors, num_suspects=len(attempts.suspects(folder)))

    def _training(self, name: str, artifact: str) -> Step:
        folder = self._folder(artifact)
        if folder is None:
            return Step(name, "to do", unit="steps")
        last = storage.last_json_line(f"{folder}/log.jsonl") or {}
        markers = [info.path for info in storage.list_files(f"{folder}/checkpoints", recursive=True)]
        saved = [path.split("/")[-2] for path in markers if path.endswith(f"/{artifacts.MARKER}")]
        steps = [int(each.rpartition("-")[2]) for each in saved if each.startswith("step-")]
        is_done = artifacts.is_complete(f"{folder}/final")
        state: State = "done" if is_done else "begun" if last or steps else "to do"
        return Step(name, state, last.get("step"), last.get("num_steps"), "steps", max(steps, default=None), last.get("loss"))


def format_status(status: RunStatus, *, with_timeline: bool = False) -> str:
    """For a person: a line a step, what works there, and what to do."""
    lines = [f"run {status.name} in {status.folder}"]
    job = status.job
    if job is not None:
        lines.append(f"at work: {job['command']} (process {job['pid']} on {job['host']}, last sign of life {job['silence_s']:.0f} s ago)")
    elif status.ended is not None:
        lines.append(f"the last job {status.ended}")
    else:
        lines.append("no job works there")
    width = max(len(step.name) for step in status.steps)
    lines += [f"  {step.name:<{width}}  {step.state:<5}  {_detail(step)}".rstrip() for step in status.steps]
    if with_timeline:
        lines += ["timeline (UTC)", *(f"  {line}" for line in _timeline(status.timeline))]
    return "\n".join([*lines, status.advice])


def _detail(step: Step) -> str:
    found = []
    if step.state != "to do" and step.done is not None and step.total is not None:
        found.append(f"{step.done}/{step.total} {step.unit}" if step.done != step.total else f"{step.total} {step.unit}")
    elif step.total is not None:
        found.append(f"{step.total} {step.unit}")
    if step.loss is not None:
        found.append(f"loss {step.loss:.3f}")
    if step.checkpoint is not None and step.state != "done":
        found.append(f"would go on from step {step.checkpoint}")
    if step.errors:
        told = ", ".join(f"{code} {number}" for code, number in sorted(step.errors.items(), key=lambda item: -item[1]))
        found.append(f"{sum(step.errors.values())} errors ({told})")
    if step.num_suspects:
        found.append(f"{step.num_suspects} were in an engine that died, and are tried again one at a time")
    return ", ".join(found)


def _timeline(timeline: Sequence[dict[str, Any]]) -> Iterator[str]:
    for each in timeline:
        end = each["ended"][11:19] if "ended" in each else "?"
        error = f": {each['error']}" if "error" in each else ""
        yield f"{each['began'][:10]} {each['began'][11:19]} to {end:<8}  {each['step']} on {each['host']}{error}"
