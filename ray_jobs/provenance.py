"""Where the numbers of a run's report come from: for each system its predictions, the model that made them, and what that learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import get_args

from ray_jobs.run import Run
from rbft.evaluation.provenance import Source, read_source
from rbft.layout import Stage
from rbft.records import Prediction


def read_sources(run: Run, predictions: Mapping[str, Sequence[Prediction]]) -> list[Source]:
    """Of each system in `predictions`, which must be those of `run`, in their order; paths as seen from the run's folder."""
    imported = run.fact("imported", {})
    split = run.config.evaluation.split
    sources = []
    for system, rows in predictions.items():
        folder = str(imported.get(system) or run.artifact(f"evaluation/{system}"))
        source = read_source(folder, system, num_videos=len(rows), split=split, facts=_facts(run, system))
        sources.append(replace(source, files=tuple((inside(run, file), sha256) for file, sha256 in source.files)))
    return sources


def inside(run: Run, uri: str) -> str:
    """`uri` as seen from the run's folder, which may be moved as a whole; itself if it lies elsewhere."""
    return uri.removeprefix(f"{run.layout.root}/")


def _facts(run: Run, system: str) -> dict[str, str]:
    config = run.config
    asked = next((model for model in config.evaluation.api_models if model.name == system), None)
    if asked is not None:
        return {"model": f"{asked.model} at {asked.url}"}
    facts = {}
    if system in config.evaluation.systems:
        facts["base model"] = f"{config.model.path}, fingerprint {run.model_fingerprint}"
    stages = [(stage, run.artifact(f"train/{system}/{stage}")) for stage in get_args(Stage)]
    trained = {f"trained, {stage}": f"{inside(run, folder)}/final" for stage, folder in stages if folder is not None}
    return facts | trained | ({"training seed": str(config.seed)} if trained else {})
