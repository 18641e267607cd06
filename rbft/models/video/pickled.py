"""Weights out of a file that another project pickled, read where nothing in it can do harm.

`.pth` and `.pyth` files are pickles. torch's `weights_only=True` builds tensors and plain containers only; and it runs in a child process
without secrets, sockets and other programs (`rbft.video.confine`), which writes the tensors as safetensors and ends.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from rbft.errors import ModelError
from rbft.video.confine import child_environment, forbid_calls

WRAPPERS = ("model", "module", "model_state", "state_dict", "model_state_dict")
"""Keys under which training scripts keep the weights among other things."""
_TIMEOUT_S = 3600.0
"""For tens of gigabytes from a slow disk."""


def pickled_to_safetensors(checkpoint: Path, target: Path) -> None:
    """Write the tensors of the pickled file `checkpoint` to `target`, a new safetensors file.

    Raises `ModelError` if it is no file of tensors by name alone, or one of them, or cannot be read.
    """
    if not checkpoint.is_file():
        raise ModelError(f"{checkpoint}: no such file; give the checkpoint that was downloaded")
    command = [sys.executable, "-m", "rbft.models.video.pickled", str(checkpoint.absolute()), str(target.absolute())]
    environment = child_environment(os.environ) | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=environment)
    except subprocess.TimeoutExpired:
        raise ModelError(f"{checkpoint}: was not read in {_TIMEOUT_S:.0f} s; copy it to a faster disk") from None
    if done.returncode == 0:
        return
    target.unlink(missing_ok=True)
    try:
        why = str(json.loads(done.stdout.splitlines()[-1])["refused"])
    except (IndexError, ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ModelError(f"{checkpoint}: the process that reads it ended ({last[:300]}); copy the file again, or free memory") from None
    raise ModelError(f"{checkpoint}: {why}; give the file of weights as it was published")


def main() -> int:
    """The child: arguments are the pickled file and the one to write."""
    forbid_calls()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except _Refused as refused:
        sys.stdout.write(json.dumps({"refused": str(refused)}) + "\n")
        return 1
    return 0


class _Refused(Exception):  # noqa: N818  # not an error of the program
    pass


def _convert(source: Path, target: Path) -> None:
    import pickle

    import torch
    from safetensors.torch import save_file

    try:
        found = torch.load(source, map_location="cpu", weights_only=True, mmap=True if zipfile.is_zipfile(source) else None)
    except pickle.UnpicklingError as error:
        lines = [line for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line]
        raise _Refused(f"holds more than tensors ({(lines or str(error).splitlines())[0][:300]})") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise _Refused(f"cannot be read as a file of torch ({(str(error).splitlines() or [type(error).__name__])[0][:300]})") from None
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in _tensors(found).items()}, target)


def _tensors(found: Any) -> dict[str, Any]:
    """The tensors by name, out of what training scripts wrap around them."""
    import torch

    for wrapper in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
            break
    if not isinstance(found, dict) or not found:
        raise _Refused(f"holds a {type(found).__name__}, not tensors by name")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise _Refused(f"holds {type(value).__name__} under {name!r}, not tensors alone")
    return found


if __name__ == "__main__":
    sys.exit(main())
