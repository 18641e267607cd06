"""`scripts/setup.sh` and what it leaves: which build it chooses, that it is idempotent and resumable, and the CPU repairs.

The script is run in a folder of its own against a `python` that writes down what pip is asked and installs nothing.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RECORDING_PYTHON = """#!/bin/bash
# pip and the repair are written down; everything else is the real interpreter.
if [[ $1 == -m && $2 == pip ]]; then
  echo "${{@:3}}" >>{calls}
  [[ ! -f {offline} ]] || exit 1
elif [[ $1 == scripts/repair_cpu.py ]]; then
  echo repair >>{calls}
elif [[ $2 == *torch.version.cuda* ]]; then
  echo cuda? >>{calls}
else
  exec {python} "$@"
fi
"""


class Machine:
    """A copy of what set-up reads, an environment that records, and a PATH."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.folder, self.calls_file, self.offline = folder / "checkout", folder / "calls", folder / "offline"
        self.programs = folder / "programs"
        (self.folder / "scripts").mkdir(parents=True)
        self.programs.mkdir()
        for name in ("pyproject.toml", "constraints.txt", "scripts/setup.sh", "scripts/repair_cpu.py", "scripts/torchvision_hook.py"):
            shutil.copy(repository / name, self.folder / name)
        (self.folder / ".venv" / "bin").mkdir(parents=True)
        text = RECORDING_PYTHON.format(calls=self.calls_file, offline=self.offline, python=sys.executable)
        for name in ("python", "pip"):
            self.program(self.folder / ".venv" / "bin" / name, text)

    @staticmethod
    def program(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def add_gpu(self) -> None:
        self.program(self.programs / "nvidia-smi", "#!/bin/bash\necho 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)'\n")

    def setup(self, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
        self.calls_file.unlink(missing_ok=True)
        environment = {**os.environ, "PATH": path or f"{self.programs}:{os.environ['PATH']}"}
        command = ["/bin/bash", str(self.folder / "scripts" / "setup.sh"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.folder.parent)

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []


@pytest.fixture
def machine(tmp_path: Path, repository: Path) -> Machine:
    machine = Machine(tmp_path, repository)
    machine.program(machine.programs / "nvidia-smi", "#!/bin/bash\necho 'NVIDIA-SMI has failed' >&2\nexit 9\n")
    return machine


def test_without_a_gpu_the_cpu_build_is_installed_and_repaired(machine: Machine) -> None:
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    torch, everything, repair = machine.calls
    assert torch == "install --quiet --no-deps torch==2.13.0+cpu"
    assert everything == "install --progress-bar off --constraint constraints.txt --editable .[cpu,dev]"
    assert repair == "repair"
    assert "setup: for CPU" in done.stdout
    assert "ready (cpu)" in done.stdout


def test_with_a_gpu_the_gpu_build_is_installed_and_nothing_is_repaired(machine: Machine) -> None:
    machine.add_gpu()
    done = machine.setup()
    assert machine.calls == ["install --progress-bar off --constraint constraints.txt --editable .[gpu,dev]", "cuda?"]
    assert "setup: for GPU" in done.stdout
    assert "ready (gpu)" in done.stdout


def test_a_machine_without_a_gpu_can_be_told_that_one_will_come(machine: Machine) -> None:
    machine.setup("gpu")
    assert ".[gpu,dev]" in machine.calls[0]


def test_the_second_time_nothing_is_installed_and_no_network_is_asked(machine: Machine) -> None:
    machine.setup()
    machine.offline.touch()
    done = machine.setup()
    assert (done.returncode, machine.calls) == (0, [])
    assert done.stdout == "setup: .venv is ready (cpu)\n"


def test_a_set_up_cut_short_goes_on_the_next_time(machine: Machine) -> None:
    machine.offline.touch()
    assert machine.setup().returncode != 0
    machine.offline.unlink()
    done = machine.setup()
    assert done.returncode == 0
    assert machine.calls[-1] == "repair"


def test_an_index_without_the_cpu_build_of_torch_is_told_with_what_to_do(machine: Machine) -> None:
    machine.offline.touch()
    done = machine.setup()
    assert done.stderr.startswith("setup: the package index has no torch==2.13.0+cpu")
    assert "PIP_EXTRA_INDEX_URL" in done.stderr


@pytest.mark.parametrize(
    ("file", "old", "new", "installs"),
    [
        pytest.param("constraints.txt", "torch==2.13.0", "torch==2.13.1", 2, marks=pytest.mark.slow),
        ("pyproject.toml", '"httpx>=0.28"', '"httpx>=0.29"', 2),
        ("pyproject.toml", 'version = "0.1.0"', 'version = "0.2.0"', 1),
        ("pyproject.toml", "line-length = 140", "line-length = 120", 0),
    ],
)
def test_only_what_changed_is_installed_again(machine: Machine, file: str, old: str, new: str, installs: int) -> None:
    machine.setup()
    path = machine.folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    machine.setup()
    assert sum(call.startswith("install") for call in machine.calls) == installs
    if installs == 1:
        assert "--no-deps" in machine.calls[0]


def test_an_environment_keeps_its_build_when_a_gpu_comes_and_it_is_said(machine: Machine) -> None:
    machine.setup()
    machine.add_gpu()
    done = machine.setup()
    assert (done.returncode, machine.calls) == (0, [])
    assert "there is a GPU now" in done.stdout
    assert machine.setup("gpu").returncode == 1


def test_a_missing_python_or_compiler_is_told_with_the_package_to_install(machine: Machine, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("bash", "basename", "cat", "cut", "dirname", "flock", "grep", "sha256sum"):
        found = shutil.which(name)
        assert found is not None
        (bare / name).symlink_to(found)
    done = machine.setup(path=str(bare))
    assert (done.returncode, machine.calls) == (1, [])
    assert "apt install g++" in done.stderr
    shutil.rmtree(machine.folder / ".venv")
    done = machine.setup(path=str(bare))
    assert done.returncode == 1
    assert "no Python 3.11 or 3.12 on PATH" in done.stderr


def test_transformers_model_classes_import_in_a_new_process() -> None:
    code = "import torchvision.transforms.v2; from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_process_that_does_not_import_torchvision_pays_nothing_for_its_repair() -> None:
    code = "import sys, importlib.util; importlib.util.find_spec('torchvision'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
