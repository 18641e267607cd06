"""Two machines on this one, and the cable between them, which can be cut: network namespaces, which only root can make."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from miniature.local_cluster import end

ROOT = Path(__file__).resolve().parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
HEAD, NODE = "10.231.0.1", "10.231.0.2"
"""In namespaces of their own: nothing outside has these addresses."""
_READY_S = 300.0


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class TwoMachines:
    """A context manager: a head, and another that `start_ray` has join. `folder` must be short: Ray's sockets lie in it."""

    def __init__(self, folder: Path, more: Mapping[str, str] | None = None) -> None:
        """`more`: of the environment of all that is started."""
        token = folder / "token"
        token.write_text("1032547698badcfe" * 4)
        self._folder, self.log = folder, folder / "ray.log"
        self._output = self.log.open("wb")
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | dict(more or {})
        self._environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_ADDRESS": f"{HEAD}:6379"}
        self._environment |= {"PYTHONPATH": str(ROOT)}
        self._names = {HEAD: f"rbft-a-{os.getpid()}", NODE: f"rbft-b-{os.getpid()}"}
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._lay_cable()
            self.start_ray(HEAD)
            deadline = time.monotonic() + _READY_S
            while self.start(HEAD, RAY, "health-check", "--address", f"{HEAD}:6379").wait() != 0:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"ray start has not come up:\n{self.log.read_text(errors='replace')[-2000:]}")
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def _lay_cable(self) -> None:
        for name in self._names.values():
            ip("netns", "add", name)
        ip("-n", self._names[HEAD], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", self._names[NODE])
        for address, name in self._names.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")

    def cut(self) -> None:
        ip("-n", self._names[HEAD], "link", "set", "cable", "down")

    def mend(self) -> None:
        ip("-n", self._names[HEAD], "link", "set", "cable", "up")

    def start(self, address: str, *words: str) -> subprocess.Popen[bytes]:
        """Run a command on the machine of that address; what it prints is in `log`."""
        command = ["ip", "netns", "exec", self._names[address], *words]
        process = subprocess.Popen(
            command, env=self._environment, stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True, cwd=ROOT
        )
        self._processes.append(process)
        return process

    def start_ray(self, address: str) -> subprocess.Popen[bytes]:
        joins = ["--head", "--port=6379", "--include-dashboard=false"] if address == HEAD else [f"--address={HEAD}:6379"]
        words = [*joins, f"--node-ip-address={address}", "--num-cpus=1", f"--object-store-memory={128 << 20}", "--disable-usage-stats"]
        words += [f"--temp-dir={self._folder / 'ray'}"] if address == HEAD else []
        return self.start(address, RAY, "start", "--block", *words)

    def _close(self) -> None:
        for process in reversed(self._processes):
            end(process)
        for name in self._names.values():
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        self._output.close()
