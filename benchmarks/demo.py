"""Where the time of `make demo` goes: a fresh run of it, its steps, its training stages, and what it said when."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/demo.md"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="rbft-bench-") as output_dir:
        command = [sys.executable, "-u", "-m", "miniature.demo", "--set", f"output_dir={output_dir}"]
        started = time.monotonic()
        lines: list[str] = []
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
            assert job.stdout is not None
            for line in job.stdout:
                print(line, end="", flush=True)
                lines.append(line.rstrip())
        if job.returncode:
            raise SystemExit(job.returncode)
        total_s = time.monotonic() - started
        summary = json.loads((Path(output_dir) / "miniature/summary.json").read_text())
    RESULT.write_text(page("python -m benchmarks demo", summary, total_s, lines))
    print(f"wrote {RESULT.relative_to(ROOT)}")


def page(command: str, summary: dict[str, Any], total_s: float, lines: list[str]) -> str:
    """The result page of a demo that `command` ran in `total_s` and that printed `lines`."""
    train_s = sum(summary["train_s"].values())
    rows = [(step, seconds) for step, seconds in summary["wall_s"].items()]
    rows += [(f"  of train: {stage}", seconds) for stage, seconds in summary["train_s"].items()]
    rows += [("  of train: starting workers, loading, checkpoints, writing models", summary["wall_s"]["train"] - train_s), ("all", total_s)]
    table = "\n".join(f"| {name} | {seconds:.1f} | {100 * seconds / total_s:.0f} % |" for name, seconds in rows)
    versions = ", ".join(f"{package} {version}" for package, version in summary["versions"].items())
    log = "\n".join(line for line in lines if re.match(r"\[ *\d+:\d\d\]", line))
    return f"""# Where the time of `make demo` goes

`{command}`, {time.strftime("%Y-%m-%d")}, on {describe_machine()}. {versions}.
Peak memory of all processes together: {summary["peak_rss_bytes"] / 2**30:.1f} GiB.

| step | seconds | share |
| --- | ---: | ---: |
{table}

What the job said, with minutes and seconds since it began:

```
{log}
```
"""


if __name__ == "__main__":
    main()
