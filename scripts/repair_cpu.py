"""Repairs an environment whose torch is the CPU build but whose torchvision and friends are CUDA builds.

    python scripts/repair_cpu.py        # with the interpreter of the environment to repair; `make setup` does it

Package indexes carry no CPU build of torchaudio, torchcodec and torchvision. Two things follow, and are mended here and nowhere else:

1. torchaudio and torchcodec want CUDA's libraries, and transformers imports torchaudio where it is installed, so that every model import
   fails. They are uninstalled; nothing here uses them.
2. torchvision fails at import for want of two operator schemas. An import hook (`torchvision_hook.py`) declares them.

Where torch has CUDA, or where these packages import as they are, nothing is touched. Running it again is harmless.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

HOOK = Path(__file__).with_name("torchvision_hook.py")
HOOK_MODULE = "_rbft_torchvision_hook"
UNWANTED = ("torchaudio", "torchcodec")


def _python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    # A new process each time: a failed import leaves half of itself behind.
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=False)


def _imports(package: str) -> bool:
    """Whether `package` imports when no `.pth` file, so no hook of ours either, is read (-S)."""
    path = sysconfig.get_path("purelib")
    return _python(f"import sys; sys.path.append({path!r}); import {package}", "-S").returncode == 0


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def _write_whole(path: Path, text: str) -> None:
    # Renamed into place: a process that starts meanwhile reads all of it or none.
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def remove_unwanted() -> list[str]:
    """The names of those of `UNWANTED` that were installed, failed to import and are now uninstalled."""
    broken = [name for name in UNWANTED if importlib.util.find_spec(name) is not None and not _imports(name)]
    if broken:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *broken], check=True)
    return broken


def install_hook(site_packages: Path) -> bool:
    """True if torchvision needed the hook and imports with it; False if it imports without. Raises SystemExit if the hook does not help."""
    module, pth = site_packages / f"{HOOK_MODULE}.py", site_packages / f"{HOOK_MODULE}.pth"
    if _imports("torchvision"):
        pth.unlink(missing_ok=True)  # left by an earlier torchvision
        module.unlink(missing_ok=True)
        return False
    _write_whole(module, HOOK.read_text(encoding="utf-8"))
    _write_whole(pth, f"import {HOOK_MODULE}\n")
    check = _python("import torchvision, torchvision.transforms.v2")
    if check.returncode != 0:
        pth.unlink()
        module.unlink()
        raise SystemExit(f"repair_cpu: torchvision fails to import and the hook does not help: {_last_line(check.stderr)}")
    return True


def main() -> None:
    if _python("import torch, sys; sys.exit(torch.version.cuda is not None)").returncode != 0:
        print("repair_cpu: torch has CUDA (or does not import); nothing repaired")
        return
    removed = remove_unwanted()
    print(f"repair_cpu: uninstalled {', '.join(removed)} (CUDA builds)" if removed else "repair_cpu: no package to uninstall")
    if importlib.util.find_spec("torchvision") is None:
        print("repair_cpu: torchvision is not installed; no hook")
        return
    hooked = install_hook(Path(sysconfig.get_path("purelib")))
    print("repair_cpu: torchvision's import hook is in place" if hooked else "repair_cpu: torchvision imports as it is; no hook")


if __name__ == "__main__":
    main()
