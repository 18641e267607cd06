"""What the machine has: compiler, memory, disk."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from rbft.doctor.check import Check

GIB = 2**30


def check_compiler() -> Check:
    """g++, ninja and Python's headers: DeepSpeed compiles its CPU optimizer with them, at first use."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    # ninja comes as a package, whose program lies beside the interpreter and need not be on PATH.
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    missing = [name for name, there in (("g++", shutil.which("g++")), ("ninja", ninja), (str(header), header.is_file())) if not there]
    if not missing:
        return Check("compiler", "ok", "g++, ninja and Python's headers")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    mend = f"install g++ and {version}-dev (Debian, Ubuntu: apt install g++ {version}-dev); ninja comes with `make setup`"
    return Check("compiler", "fail", f"missing: {', '.join(missing)}", mend)


def check_memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.total / GIB:.0f} GiB, {memory.available / GIB:.0f} free; {os.cpu_count()} cores"
    # The demo's peak is below 12 GB; Ray ends workers when 95 % are used.
    if memory.available < 12 * GIB:
        return Check("memory", "warn", found, "close other programs: the demo needs up to 12 GiB")
    return Check("memory", "ok", found)


def check_shared_memory(folder: str = "/dev/shm") -> Check:
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Check("shared memory", "warn", f"{folder}: {error.strerror}", "mount a tmpfs there, else Ray keeps its objects on disk")
    found = f"{usage.free / GIB:.1f} GiB free of {usage.total / GIB:.1f} in {folder}"
    if usage.free < 2 * GIB:
        mend = "make it at least 2 GiB (containers: --shm-size=8g), else Ray keeps its objects on disk"
        return Check("shared memory", "warn", found, mend)
    return Check("shared memory", "ok", found)


def check_run_folder(run_dir: str) -> Check:
    """Whether the run folder, or the nearest parent that exists, can be written and has room."""
    if "://" in run_dir:
        return Check("run folder", "ok", f"{run_dir}: not on this machine's disk; the first write tells")
    folder = Path(run_dir).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        found = f"{existing}: cannot be written ({error.strerror})"
        return Check("run folder", "fail", found, "give another run folder, or write permission")
    free = shutil.disk_usage(existing).free
    found = f"{folder}: {free / GIB:.0f} GiB free"
    if free < 2 * GIB:
        return Check("run folder", "fail", found, "free at least 2 GiB, or give a run folder on another disk")
    if free < 20 * GIB:
        # bf16 weights, fp32 weights and two moments: 14 bytes for each of 8.3e9 parameters.
        mend = "enough for the demo; a checkpoint of Qwen2.5-VL-7B with its optimizer state takes 116 GB"
        return Check("run folder", "warn", found, mend)
    return Check("run folder", "ok", found)
