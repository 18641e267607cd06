"""Whether the libraries do what they are there for, tried in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from rbft.doctor.check import SET_UP_AGAIN, Check

_PROBE_TIMEOUT_S = 120.0  # importing torch and transformers from a cold network disk takes a minute


def probe(code: str) -> tuple[Any, str]:
    """(what `code` printed as its last line, as JSON, and "") or (None, why it failed). It runs in a process of its own."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return None, f"no answer in {_PROBE_TIMEOUT_S:.0f} s"
    if done.returncode < 0:
        return None, f"its process was ended by signal {-done.returncode}"
    if done.returncode != 0:
        return None, (done.stderr.strip().splitlines() or ["no message"])[-1]
    return json.loads(done.stdout.strip().splitlines()[-1]), ""


def check_pyav() -> Check:
    found, why = probe("import av, json; print(json.dumps([av.__version__, av.ffmpeg_version_info, 'h264' in av.codecs_available]))")
    if found is None:
        return Check("PyAV", "fail", why, SET_UP_AGAIN)
    version, ffmpeg, has_h264 = found
    text = f"PyAV {version} with FFmpeg {ffmpeg}"
    if not has_h264:
        mend = "install PyAV's own wheel: pip install --force-reinstall --only-binary :all: av"
        return Check("PyAV", "fail", f"{text}, without H.264", mend)
    return Check("PyAV", "ok", text)


def check_decord() -> Check:
    found, why = probe("import decord, json; print(json.dumps([decord.__version__, bool(decord.VideoReader)]))")
    if found is None:
        # Not fatal: PyAV reads everything.
        return Check("decord", "warn", why, f"{SET_UP_AGAIN}; until then leave video.backend as auto or pyav")
    return Check("decord", "ok", f"decord {found[0]} with its own FFmpeg")


def check_decoders() -> Check:
    """What a decoder that a file has taken over could still do here."""
    found, why = probe(
        "import json; from rbft.video.confine import forbid_calls; from rbft.video.landlock import forbid_changes; "
        "print(json.dumps([forbid_changes(), forbid_calls()]))"
    )
    if found is None:
        return Check("decoders", "fail", why, SET_UP_AGAIN)
    missing = [reason for reason in found if reason is not None]
    if missing:
        mend = (
            "no matter with videos of your own; else use Linux 5.13 or newer, in a container one whose filter allows Landlock and seccomp"
        )
        return Check("decoders", "warn", f"a file that takes one over could do more than decode: {'; '.join(missing)}", mend)
    return Check("decoders", "ok", "no sockets, no other programs, no changes of files (seccomp, Landlock)")


def check_torch() -> list[Check]:
    """The torch build, and the GPUs with their driver."""
    code = "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.is_available()]))"
    found, why = probe(code)
    gpus = _gpus()
    gpu_text = "; ".join(gpus) or "none"
    if found is None:
        return [Check("torch", "fail", why, SET_UP_AGAIN), Check("GPUs", "ok", gpu_text)]
    version, cuda, is_usable = found
    torch_check = Check("torch", "ok", f"{version} ({f'CUDA {cuda}' if cuda else 'CPU build'})")
    if gpus and not cuda:
        mend = "for the GPUs: rm -rf .venv, then `make setup`"
        return [torch_check, Check("GPUs", "warn", f"{gpu_text}; but torch is a CPU build", mend)]
    if gpus and not is_usable:
        return [torch_check, Check("GPUs", "fail", f"{gpu_text}; torch cannot use them", f"install a driver for CUDA {cuda} or newer")]
    return [torch_check, Check("GPUs", "ok", gpu_text)]


def _gpus() -> list[str]:
    """One text a GPU: name, memory, driver; empty where nvidia-smi is missing or fails."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def check_model_libraries() -> Check:
    """Whether transformers' model classes import, which fails as a whole where torchvision does."""
    found, why = probe("import torchvision; from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration; print(1)")
    if found is None:
        return Check("transformers", "fail", why, f"{SET_UP_AGAIN} (on a CPU it repairs this: python scripts/repair_cpu.py)")
    return Check("transformers", "ok", "its model classes import")
