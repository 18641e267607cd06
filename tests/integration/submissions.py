"""What tests of submitted jobs have in common: a teacher that answers when it is let, and a person who types `rbft …`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence

from tests.integration.conftest import Jobs
from tests.openai_server import Server


class Teacher(Server):
    """Writes rationales as soon as it may, the first `num_free` at once: no engine has to start, and a job lasts as long as it must."""

    def __init__(self, num_free: int = 0) -> None:
        super().__init__()
        self.may_answer = threading.Event()
        self._free = threading.Semaphore(num_free)
        self.on_request = self._hold

    def _hold(self) -> None:
        if not self._free.acquire(blocking=False):
            self.may_answer.wait(600)

    def close(self) -> None:
        self.may_answer.set()
        super().close()

    def setting(self) -> str:
        """What has a run ask it."""
        return f"teacher.server={{url: {self.url}, model: m, max_concurrency: 4}}"


class Person:
    """Types `rbft …` on a machine with nothing but the token's file."""

    def __init__(self, jobs: Jobs, dashboard: str, token_file: str) -> None:
        self._jobs, self._dashboard = jobs, dashboard
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment["RAY_AUTH_TOKEN_PATH"] = token_file

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "rbft.cli", *words, "--address", self._dashboard],
            cwd=self._jobs.repository,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, expect: int = 0) -> tuple[str, str]:
        """What came on stdout and on stderr."""
        process = self.start(*words)
        out, err = process.communicate(timeout=900)
        assert process.returncode == expect, out + err
        return out, err

    def submission(self, verb: str, name: str, *overrides: str) -> Sequence[str]:
        return ("submit", verb, *self._jobs.command(verb, name, *overrides)[2:])
