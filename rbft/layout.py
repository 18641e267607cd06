"""Where things lie in a run's folder. The one place that knows; paths are strings, as a run may lie on an object store.

<run>/lease.json                                while a job works there: which
<run>/config.yaml                               resolved configuration
<run>/run.json                                  versions, hashes, lineage, and which artifact is the current one of each kind
<run>/manifest.parquet
<run>/durations.parquet                         how long the videos say they are
<run>/rationales/<fingerprint>/                 parts/ and attempts/ while it grows, rationales-*.parquet and COMPLETE.json at the end,
                                                with scores.parquet, quality.json and quality.html, and reviews/ if people changed any
<run>/train/<system>/<stage>/<fingerprint>/     checkpoints/, log.jsonl, tensorboard/, final/ (a model folder with COMPLETE.json)
<run>/evaluation/<system>/<fingerprint>/        predictions-*.parquet, metrics.json (calibrated.json), COMPLETE.json; of an API model also
                                                usage.json and answers/; of the report's videos what the model writes about
                                                them, samples/, and where it looks, attention-<fingerprint>/
<run>/calibration/<system>/<fingerprint>/       the same for the validation videos, if evaluation.calibrate, with calibration.json
<run>/rationale-check/<system>/<fingerprint>/   parts/ of what a model wrote about held-out videos after training, if that was asked for
<run>/looking/boxes-<fingerprint>.parquet       where the base model sees objects, if `evaluation.masking.find` is grounding
<run>/reproduction/table1.{html,json}, …         the paper's tables with this run's rows
<run>/report.html, summary.json
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stage = Literal["rationale", "classify"]


@dataclass(frozen=True)
class RunLayout:
    root: str

    @property
    def config(self) -> str:
        return f"{self.root}/config.yaml"

    @property
    def run_json(self) -> str:
        return f"{self.root}/run.json"

    @property
    def manifest(self) -> str:
        return f"{self.root}/manifest.parquet"

    @property
    def durations(self) -> str:
        return f"{self.root}/durations.parquet"

    @property
    def report(self) -> str:
        return f"{self.root}/report.html"

    @property
    def summary(self) -> str:
        return f"{self.root}/summary.json"

    def rationales(self, fingerprint: str) -> str:
        return f"{self.root}/rationales/{fingerprint}"

    def looking(self, name: str, fingerprint: str) -> str:
        """Of `name` ("boxes") without its ending."""
        return f"{self.root}/looking/{name}-{fingerprint}"

    def reproduction(self, name: str) -> str:
        """Of `name` ("table1") without its ending."""
        return f"{self.root}/reproduction/{name}"

    def train(self, system: str, stage: Stage, fingerprint: str) -> str:
        return f"{self.root}/train/{system}/{stage}/{fingerprint}"

    def evaluation(self, system: str, fingerprint: str) -> str:
        return f"{self.root}/evaluation/{system}/{fingerprint}"

    def calibration(self, system: str, fingerprint: str) -> str:
        return f"{self.root}/calibration/{system}/{fingerprint}"

    def rationale_check(self, system: str, fingerprint: str) -> str:
        return f"{self.root}/rationale-check/{system}/{fingerprint}"
