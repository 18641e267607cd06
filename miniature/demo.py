"""`make demo`: draw the miniature world and run the whole pipeline on it. `python -m miniature.demo [--set a.b=c]`

The world goes to runs/miniature/world, the run to runs/miniature; a second run finds both and goes on where the first one stopped. The
pipeline knows nothing of the world, so what only the world can tell, the base model's slot scores, is added to summary.json here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from miniature.analysis import read_truth
from miniature.slots import score
from miniature.write import drawn_world

ROOT = Path(__file__).resolve().parent.parent
WORLD = ROOT / "runs/miniature/world"
SEED = 20_000
"""Of a world that nothing was tuned on."""
SIZES = {"train": 512, "test": 256}


def main() -> None:
    from ray_jobs.generate import read_rationales
    from ray_jobs.pipeline import job
    from ray_jobs.run import Run
    from rbft.cli import run as run_command
    from rbft.config import load_config
    from rbft.lease import Lease

    parser = argparse.ArgumentParser(prog="python -m miniature.demo", description="The whole of RB-FT on the miniature world.")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override one value of the run")
    overrides = parser.parse_args().overrides

    def command() -> None:
        drawn_world(WORLD, SEED, SIZES)
        config = load_config(ROOT / "configs/miniature.yaml", overrides)
        with Lease(config.run_dir, "make demo"):
            run = Run(config)
            job(run)
        texts = {row.id: row.text for row in read_rationales(run) if row.text is not None}
        add_slots(Path(run.layout.summary), texts)

    raise SystemExit(run_command(command))


def add_slots(summary_path: Path, rationales: dict[str, str]) -> None:
    """Add `base_slots` to the summary: shares of slots the base model names rightly, by domain.

    "target" is measured on this run's rationales (id -> text), "general" is what `miniature.base` measured and wrote down.
    """
    truth = read_truth(WORLD)
    provenance = json.loads((ROOT / "miniature/model/provenance.json").read_text())
    target = score(list(rationales.values()), [truth[id_].slots for id_ in rationales])
    summary = json.loads(summary_path.read_text())
    summary["base_slots"] = {"general": provenance["slots"]["general"], "target": target}
    summary_path.write_text(json.dumps(summary, indent=2) + "\n")
    print(f"base model: {100 * target['overall']:.1f} % of the slots of this world's training clips named rightly in its rationales")


if __name__ == "__main__":
    main()
