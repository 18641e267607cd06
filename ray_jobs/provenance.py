"""Where the numbers of a run's report come from: for each system its predictions, those of other seeds and of the validation split among
them, the model that made them, and what that learned from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import get_args

from ray_jobs.run import Run
from rbft import artifacts, storage
from rbft.evaluation.provenance import Source, read_files, read_source
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
        files = tuple((inside(run, file), sha256) for file, sha256 in source.files)
        sources.append(replace(source, files=files, more=tuple(_more(run, system, folder))))
    return sources


def _more(run: Run, system: str, folder: str) -> Iterator[tuple[str, str, str]]:
    """What else the report says of `system`, whose predictions are in `folder`, is made of."""
    for other in run.all_seeds()[1:]:
        if system in other.config.evaluation.all_systems:
            for file, sha256 in read_files(str(other.artifact(f"evaluation/{system}"))):
                yield f"predictions, seed {other.config.seed}", inside(run, file), sha256
    if run.config.evaluation.calibrate and system in run.config.evaluation.systems:
        fitted = str(run.artifact(f"calibration/{system}"))
        for file, sha256 in read_files(fitted):
            yield "validation predictions", inside(run, file), sha256
        yield "calibration", inside(run, f"{fitted}/calibration.json"), _sha256(f"{fitted}/calibration.json")
    if any(model.name == system for model in run.config.evaluation.api_models):
        yield "tokens and costs", inside(run, f"{folder}/usage.json"), _sha256(f"{folder}/usage.json")


def _sha256(uri: str) -> str:
    return artifacts.bytes_sha256(storage.read_bytes(uri))


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
