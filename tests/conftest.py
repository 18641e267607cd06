"""What every test shares: a closed environment, short temporary folders, the order, and the rule about skips."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.browser import WITHOUT_BROWSER

if TYPE_CHECKING:
    from tests.s3 import FlakyS3

REPOSITORY = Path(__file__).resolve().parent.parent

# Before anything is imported, and for every child process. No test talks to a hub, a telemetry server or a cluster that happens to run.
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        # A job's bare `python` and DeepSpeed's `ninja` must be those of this environment, also when pytest is called by its path.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # there is a worker a core
for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
    os.environ.pop(name, None)

# A shell that runs us in the background has us ignore SIGINT, and so would every process whose Ctrl-C is tested.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes depends on what else the machine does. The same examples every time: what fails was changed by whoever sees it
# fail; `make test-full` looks for others.
settings.register_profile("explore", deadline=None, print_blob=True)
settings.register_profile("rbft", settings.get_profile("explore"), derandomize=True)
settings.load_profile("rbft")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Path]:
    """A folder for the whole session with a short path: Ray and vLLM make sockets in it, whose paths may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="rbft"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests first: they say in seconds what an engine would say in minutes."""
    items.sort(key=lambda item: (REPOSITORY / "tests" / "integration") in item.path.parents)


_forbidden_skips: list[str] = []


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "GPU" not in reason and reason != WITHOUT_BROWSER:
            _forbidden_skips.append(f"{report.nodeid}: {reason}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skip(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A test that does not run holds nothing: a skip for want of anything but a GPU or a browser fails the session."""
    if _forbidden_skips and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _forbidden_skips:
        terminalreporter.section("skipped for want of something other than a GPU or a browser: not allowed", red=True)
        for line in _forbidden_skips:
            terminalreporter.line(line)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyS3]:
    """An S3 server with an empty bucket, runs, that does not fail; this process and those it starts find it."""
    import httpx

    from tests.s3 import FlakyS3

    server = FlakyS3("runs", period=1_000_000, delay_s=0.0)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    httpx.post(f"{server.url}/moto-api/reset").raise_for_status()  # moto's stores are of the process, not of the server
    server.close()
