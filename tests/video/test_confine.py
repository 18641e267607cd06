"""What a decoder's process may not do, asked of a process that has given it up."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rbft.records import VideoSpec
from rbft.video.confine import child_environment
from rbft.video.pool import DecodePool


def _confined(code: str, repository: Path) -> str:
    """What `code` prints after it has given up its calls."""
    program = f"from rbft.video.confine import forbid_calls\nassert forbid_calls() is None\n{textwrap.dedent(code)}"
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.socket()",
        "import socket; socket.socket(socket.AF_UNIX)",
        "import socket; socket.socketpair()",
        "import os; os.execv('/bin/true', ['true'])",
        "import subprocess; subprocess.run(['/bin/true'])",
        "import threading, socket\nfailed = []\n"
        "def run():\n    try: socket.socket()\n    except OSError as error: failed.append(error)\n"
        "thread = threading.Thread(target=run); thread.start(); thread.join(); raise failed[0]",
    ],
)
def test_a_confined_process_has_no_sockets_and_starts_no_program(repository: Path, attempt: str) -> None:
    indented = textwrap.indent(attempt, "    ")
    assert _confined(f"try:\n{indented}\nexcept PermissionError:\n    print('refused')", repository) == "refused"


def test_a_confined_process_cannot_make_a_socket_by_the_other_door(repository: Path) -> None:
    """io_uring, and x86-64's second numbering of calls."""
    code = """
        import ctypes, platform
        libc = ctypes.CDLL(None, use_errno=True)
        calls = [425] + ([0x40000000 + 41] if platform.machine() == "x86_64" else [])
        print([(libc.syscall(call, 1, 1, 0), ctypes.get_errno()) for call in calls] == [(-1, 1)] * len(calls))
    """
    assert _confined(code, repository) == "True"


def test_a_confined_process_still_reads_and_computes(repository: Path) -> None:
    assert _confined("import numpy, av; print(open('README.md').read(1), numpy.ones(3).sum())", repository) == "# 3.0"


def test_a_decoder_knows_no_secret_of_its_parent(monkeypatch: pytest.MonkeyPatch, plain: Path) -> None:
    secrets = ("AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "RAY_AUTH_TOKEN", "RBFT_KEY", "LD_PRELOAD")
    for name in secrets:
        monkeypatch.setenv(name, "")
    assert not set(secrets) & set(child_environment(dict.fromkeys(secrets, "x")))
    monkeypatch.setenv("OPENAI_API_KEY", "very-secret")
    with DecodePool(1) as pool:
        pool.decode(plain, VideoSpec())
        (child,) = pool._children
        process = Path(f"/proc/{child._process.pid}")
        assert b"very-secret" not in (process / "environ").read_bytes()
        assert "Seccomp:\t2" in (process / "status").read_text(), "the filter holds in the decoder itself"
