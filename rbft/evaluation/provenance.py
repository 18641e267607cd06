"""Where a report's numbers come from: the files of predictions with their hashes, what answered, and what it learned from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rbft import artifacts
from rbft.evaluation.metrics import NUM_RESAMPLES
from rbft.evaluation.probabilities import NUM_BINS
from rbft.evaluation.significance import NUM_PERMUTATIONS

DEFINITIONS = {
    "accuracy": "videos answered with their true label, over all videos; a video without an answer counts as wrong",
    "balanced accuracy": "mean over the true labels of the share of their videos that are answered rightly",
    "macro-F1": "mean over the labels of F1",
    "precision, recall, F1": "of the videos answered with a label the share whose label it is; of the videos of a label the share so "
    "answered; the harmonic mean of the two",
    "answered": "videos with an answer that is one of the labels, over all videos",
    "AUROC": "how often a video of a label has a higher probability of it than one of another label: of the second of two labels, of "
    "more the mean over labels of one against the rest",
    "ECE": f"expected calibration error: distance between the likeliest label’s probability and how often it is right, in {NUM_BINS} bins "
    "of equal width, weighted by videos",
    "log-loss": "mean negative log-probability of the true label, in nats",
    "Brier score": "mean squared distance of the probabilities to the true label’s unit vector, summed over labels: 0 to 2",
    "95 % interval": f"2.5 and 97.5 percentiles of {NUM_RESAMPLES:,} resamples of the videos; of a difference, both systems on the "
    "same resample",
    "permutation p": f"paired, two-sided: {NUM_PERMUTATIONS:,} times a coin a video says which system gave which answer",
    "McNemar’s p": "exact two-sided test of the accuracies, on the videos that one system alone gets right",
    "by label likelihood": "the answer is the label to whose tokens, and the end after them, the model gives the highest probability",
    "by generated text": "the answer is the label that the greedily generated text names; none or several named is no answer",
}
"""What each number means, in the words of the report."""


@dataclass(frozen=True)
class Source:
    """Where the numbers of one system come from."""

    system: str
    files: tuple[tuple[str, str], ...]
    """(path or URI of a file of predictions, SHA-256 of its bytes)."""
    fingerprint: str | None
    """Of all that determined the predictions; None for a lone file."""
    split: str | None
    num_videos: int
    facts: Mapping[str, str] = field(default_factory=dict)
    """What else is known, in the order of the page: model, engine, what it was trained on."""
    more: tuple[tuple[str, str, str], ...] = ()
    """(what is in it, path or URI, SHA-256) of what else the system's numbers are made of: other seeds, calibration, tokens and costs."""

    @property
    def line(self) -> str:
        """The first file, and how many more there are."""
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0][0]}{more}" if self.files else "no file"


def read_source(folder: str, system: str, *, num_videos: int, split: str | None = None, facts: Mapping[str, str] | None = None) -> Source:
    """The source of the predictions in the complete `folder`; its marker adds to `facts` the engine, or what they were imported from.

    Raises:
        ArtifactError: the folder is not complete.
    """
    marker = artifacts.read_marker(folder)
    lineage = marker["lineage"]
    known = {name: str(lineage[key]) for key, name in _LINEAGE.items() if lineage.get(key) is not None}
    return Source(system, read_files(folder), str(marker["fingerprint"]), split, num_videos, dict(facts or {}) | known)


def read_files(folder: str) -> tuple[tuple[str, str], ...]:
    """(file, SHA-256) of the complete `folder`; raises `ArtifactError` if it is not."""
    return tuple((f"{folder}/{name}", str(part["sha256"])) for name, part in artifacts.read_marker(folder)["parts"].items())


_LINEAGE = {"engine": "engine", "imported_from": "imported from", "sha256": "SHA-256 of what was imported"}
"""Key in a marker -> name on the page."""
