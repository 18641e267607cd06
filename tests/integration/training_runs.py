"""What a run's one stage of direct-sft-1 has left on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rbft import artifacts


def stage_folder(run: Path) -> Path:
    (folder,) = run.glob("train/direct-sft-1/classify/*")
    return folder


def num_logged(run: Path) -> int:
    """Optimiser steps in the log."""
    logs = list(run.glob("train/direct-sft-1/classify/*/log.jsonl"))
    return logs[0].read_bytes().count(b"\n") if logs else 0


def log_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (stage_folder(run) / "log.jsonl").read_text().splitlines()]


def weights(run: Path) -> bytes:
    return (stage_folder(run) / "final" / "model.safetensors").read_bytes()


def lineage(run: Path) -> dict[str, Any]:
    return dict(artifacts.read_marker(str(stage_folder(run) / "final"))["lineage"])
