"""All metrics of one system's predictions, and how they are kept beside these: the intervals of a hundred thousand videos take minutes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from rbft import artifacts, storage
from rbft.errors import ArtifactError
from rbft.evaluation import calibration, metrics, probabilities
from rbft.evaluation.metrics import Metrics, answered_modes, evaluate_predictions
from rbft.evaluation.probabilities import ProbabilityMetrics, evaluate_probabilities, has_probabilities
from rbft.records import Prediction


@cache
def code_sha256() -> str:
    """Of the code that computes metrics and intervals: what other code has computed is computed again."""
    return artifacts.bytes_sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in (metrics, probabilities, calibration)))


class Measures(BaseModel):
    """The metrics of the answers, in each mode that there are some in, and of the probabilities where there are some."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    likelihood: Metrics | None = None
    generate: Metrics | None = None
    probabilities: ProbabilityMetrics | None = None


def measure(predictions: Sequence[Prediction], labels: Sequence[str], seed: int) -> Measures:
    """The metrics of `predictions`; raises `DataError` as `evaluate_predictions` and `evaluate_probabilities` do."""
    return Measures(
        **{mode: evaluate_predictions(predictions, labels, mode, seed=seed) for mode in answered_modes(predictions)},
        probabilities=evaluate_probabilities(predictions, labels, seed=seed) if has_probabilities(predictions) else None,
    )


def kept_measures(uri: str, inputs: Any, make: Callable[[], Measures]) -> Measures:
    """What `make` gives, kept in the JSON file `uri`: read from there if that was made of the same `inputs` (JSON types), else written."""
    fingerprint = artifacts.fingerprint({"code": code_sha256(), "inputs": inputs})
    if (kept := _read(uri, fingerprint)) is not None:
        return kept
    measures = make()
    found = {name: part for name, part in measures.model_dump(mode="json").items() if part is not None}
    storage.write_json(uri, {"fingerprint": fingerprint, **found})
    return measures


def _read(uri: str, fingerprint: str) -> Measures | None:
    """None where there are none of this fingerprint; a file that is damaged or of another schema is one."""
    if not storage.exists(uri):
        return None
    try:
        found = storage.read_json(uri)
        return Measures.model_validate(found) if found.pop("fingerprint", None) == fingerprint else None
    except (ArtifactError, ValidationError, AttributeError):
        return None
