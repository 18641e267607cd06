"""An experiment: which worlds, systems and rates. `protocols/<name>.yaml` is its protocol; this reads it and makes runs of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import BaseModel, ConfigDict

from miniature.write import drawn_world
from rbft.config import load_config
from rbft.errors import ConfigError
from rbft.evaluation.metrics import METRICS
from rbft.systems import SystemName

if TYPE_CHECKING:
    from ray_jobs.run import Run

ROOT = Path(__file__).resolve().parent.parent
PROTOCOLS = Path(__file__).resolve().parent / "protocols"
FIRST = "evidence-1"
VISION_SHARE = 0.2
"""The vision tower's rate in that of the language model (paper 4.1)."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Learning(_Model):
    """Peak rates of the language model; the vision tower learns at a fifth of them (paper 4.1)."""

    rates: dict[SystemName, float]
    """System -> rate for labels; `rb-ft-unlabelled` learns at `rb-ft`'s."""
    rationale_times: float
    """Stage 1 learns at this times the rate for labels."""

    def per_system(self) -> dict[str, dict[str, dict[str, float]]]:
        """As `training.per_system` takes them."""
        return {
            system: {
                "rationale": {"lr_language": rate * self.rationale_times, "lr_vision": rate * self.rationale_times * VISION_SHARE},
                "classify": {"lr_language": rate, "lr_vision": rate * VISION_SHARE},
            }
            for system, rate in ({"rb-ft-unlabelled": self.rates["rb-ft"]} | self.rates).items()
        }


class Headline(_Model):
    system: SystemName
    baseline: SystemName
    metric: str


class Development(_Model):
    worlds: tuple[int, ...]
    sizes: dict[str, int]
    rates: tuple[float, ...]


class Gates(_Model):
    general_slots: float
    target_slots: tuple[float, float]
    oracle_headroom: float


class Protocol(_Model):
    """What a protocol's file says; its comments say why."""

    name: str
    question: str = "Does RB-FT beat Direct-SFT?"
    after: str | None = None
    """What an earlier experiment showed that made this one worth running."""
    frozen: bool
    """Whether everything in it is final; a run of one that is not is a rehearsal, and its page says so."""
    worlds: tuple[int, ...]
    title_world: int
    sizes: dict[str, int]
    gates_profile: str = "paper"
    """`gates.profile` of its runs."""
    headline: Headline
    systems: tuple[SystemName, ...]
    label_counts: tuple[int, ...]
    curve_systems: tuple[SystemName, ...]
    learning: Learning
    development: Development
    gates: Gates

    @property
    def all_systems(self) -> tuple[str, ...]:
        """Those of the table, then those of the label curve."""
        return (*self.systems, *(f"{system}@{count}" for count in self.label_counts for system in self.curve_systems))


def load_protocol(protocol: str = FIRST) -> Protocol:
    """The protocol of that name in `protocols/`, or in a file of one's own. Raises `ConfigError` if there is none or it is none."""
    path = protocol_file(protocol)
    try:
        return _checked(Protocol.model_validate(yaml.safe_load(path.read_text())))
    except (OSError, ValueError, yaml.YAMLError) as error:
        known = ", ".join(sorted(found.stem for found in PROTOCOLS.glob("*.yaml")))
        raise ConfigError(f"{path}: no protocol ({error}); there are {known}") from error


def protocol_file(protocol: str) -> Path:
    """Where the protocol called `protocol` is, which may be the path of a file."""
    return Path(protocol) if protocol.endswith(".yaml") else PROTOCOLS / f"{protocol}.yaml"


def gates_file(protocol: str) -> Path:
    """Where `make gates` writes what it found for it."""
    return protocol_file(protocol).with_suffix(".gates.json")


def _checked(protocol: Protocol) -> Protocol:
    if protocol.headline.metric not in METRICS:
        raise ValueError(f"headline.metric must be one of {', '.join(METRICS)}")
    return protocol


def open_run(
    folder: Path,
    name: str,
    seed: int,
    sizes: dict[str, int],
    *,
    systems: Sequence[str],
    learning: Learning,
    gates_profile: str = "paper",
    split: str = "test",
    task: str = "miniature",
) -> Run:
    """The run `<folder>/<name>` on target world `seed`, whose clips are drawn to `<folder>/worlds` unless they are there.

    Everything that is not said here is as in configs/miniature.yaml: the demo and the experiment are the same pipeline.
    """
    from ray_jobs.run import Run

    manifest = drawn_world(folder / "worlds" / f"{task}-{seed}", seed, sizes, task)
    settings = [
        f"name={name}",
        f"output_dir={folder}",
        f"seed={seed}",
        f"task={ROOT / 'configs/tasks' / f'{task}.yaml'}",
        f"data.manifest={manifest}",
        f"evaluation.systems={yaml.safe_dump(list(systems), default_flow_style=True)}",
        f"evaluation.split={split}",
        f"gates.profile={gates_profile}",
        f"training.per_system={yaml.safe_dump(learning.per_system(), default_flow_style=True, width=10_000)}",
        "training.gradient_checkpointing=false",  # memory is not short at this size
        "training.checkpoint_every_steps=1000",  # a stage takes seconds: one that is cut short starts again
    ]
    return Run(load_config(ROOT / "configs/miniature.yaml", settings))
