"""Where the time of `make evidence` went: its steps, what of them was starting up, and its systems. Reads the records of a finished
experiment, as running one takes an hour. `python -m benchmarks evidence`"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/evidence.md"


def main() -> None:
    from miniature.protocol import PROTOCOLS

    sections = []
    for name in sorted(path.stem for path in PROTOCOLS.glob("*.yaml")):
        records = [json.loads(path.read_text()) for path in sorted((ROOT / "runs" / name).glob("*/run.json"))]
        if not any("report" in record.get("wall_s", {}) for record in records):
            print(f"{ROOT / 'runs' / name}: holds no finished experiment; run `make evidence PROTOCOL={name}` first")
            return
        sections.append(section(name, records))
    title = f"# Where the time of `make evidence` goes\n\nOn {describe_machine()}; written {time.strftime('%Y-%m-%d')}."
    RESULT.write_text("\n\n".join([title, *sections]) + "\n")
    print(f"wrote {RESULT.relative_to(ROOT)}")


def section(name: str, records: list[dict[str, Any]]) -> str:
    """What is said of an experiment with these run.json records; the one that led has the times of the shared steps."""
    main = next(record for record in records if "report" in record.get("wall_s", {}))
    wall_s, start_s = main["wall_s"], dict(main["start_s"])
    of_system: dict[str, float] = defaultdict(float)
    for record in records:
        for stage, seconds in record["train_s"].items():
            of_system[stage.partition("/")[0]] += seconds
    start_s["train"] = wall_s["train"] - sum(of_system.values())
    total_s = sum(wall_s.values())
    steps = "\n".join(
        f"| {step} | {seconds:.0f} | {100 * seconds / total_s:.0f} % | {_starting(start_s.get(step), total_s)} |"
        for step, seconds in [*wall_s.items(), ("all", total_s)]
    )
    systems = "\n".join(f"| {system} | {seconds:.0f} |" for system, seconds in sorted(of_system.items()))
    versions = ", ".join(f"{package} {version}" for package, version in main["versions"].items())
    return f"""## {name}

`make evidence PROTOCOL={name}`, begun {main["created"]}. {versions}.
{len(records)} worlds. Starting up: until the first block of clips was done (Ray, engines), and what of training was not optimiser steps
(workers, loading, writing models): {100 * sum(start_s.values()) / total_s:.0f} % of all. Drawing the worlds comes before, some 40 s each.

| step | seconds | share | starting up |
| --- | ---: | ---: | ---: |
{steps}

Optimiser steps by system, all worlds. A stage that two systems share stands at the first.

| system | seconds |
| --- | ---: |
{systems}"""


def _starting(seconds: float | None, total_s: float) -> str:
    return "" if seconds is None else f"{seconds:.0f} s, {100 * seconds / total_s:.0f} %"


if __name__ == "__main__":
    main()
