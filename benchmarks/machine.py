"""What a result was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil


def describe_machine() -> str:
    """CPU model, cores and memory, in one line."""
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    gib = psutil.virtual_memory().total / 2**30
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, {gib:.0f} GiB, {platform.system()}"
