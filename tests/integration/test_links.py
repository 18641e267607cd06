"""A cut link between two machines: network namespaces with a cable between them, which only root can make. Engines only sleep
(`benchmarks.cluster`), as nothing here is about them; the job checks at its end that every id has exactly one row."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import end_process_tree, wait_for, wait_until

RAY = str(Path(sys.executable).with_name("ray"))

pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow]

HEAD, NODE = "10.231.0.1", "10.231.0.2"
"""In namespaces of their own: nothing outside has these addresses."""
PATIENCE = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
"""A node that is silent for some ten seconds is given up; Ray's own is half a minute."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Machines:
    """Two machines and the cable between them."""

    def __init__(self, folder: Path, token: Path) -> None:
        self._folder, self._log = folder, (folder / "ray.log").open("wb")
        self.environment = os.environ | PATIENCE | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self.environment |= {"RAY_ADDRESS": f"{HEAD}:6379", "PYTHONPATH": os.getcwd()}
        self.names = {HEAD: f"rbft-a-{os.getpid()}", NODE: f"rbft-b-{os.getpid()}"}
        self._processes: list[subprocess.Popen[bytes]] = []
        for name in self.names.values():
            ip("netns", "add", name)
        ip("-n", self.names[HEAD], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", self.names[NODE])
        for address, name in self.names.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")

    def cut(self) -> None:
        ip("-n", self.names[HEAD], "link", "set", "cable", "down")

    def mend(self) -> None:
        ip("-n", self.names[HEAD], "link", "set", "cable", "up")

    def start(self, address: str, *words: str) -> subprocess.Popen[bytes]:
        """Run a command on the machine of that address."""
        command = ["ip", "netns", "exec", self.names[address], *words]
        process = subprocess.Popen(
            command, env=self.environment, cwd=os.getcwd(), stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._processes.append(process)
        return process

    def start_ray(self, address: str) -> subprocess.Popen[bytes]:
        joins = ["--head", "--port=6379", "--include-dashboard=false"] if address == HEAD else [f"--address={HEAD}:6379"]
        words = [*joins, f"--node-ip-address={address}", "--num-cpus=1", f"--object-store-memory={128 << 20}", "--disable-usage-stats"]
        words += [f"--temp-dir={self._folder / 'ray'}"] if address == HEAD else []
        return self.start(address, RAY, "start", "--block", *words)

    def close(self) -> None:
        for process in reversed(self._processes):
            if process.poll() is None:
                end_process_tree(process.pid)
        for name in self.names.values():
            ip("netns", "delete", name)
        self._log.close()


@pytest.fixture
def machines(short_tmp: Path) -> Iterator[Machines]:
    folder = short_tmp / "links"
    folder.mkdir()
    (folder / "token").write_text("1032547698badcfe" * 4)
    found = Machines(folder, folder / "token")
    try:
        found.start_ray(HEAD)
        check = [RAY, "health-check", "--address", f"{HEAD}:6379"]
        wait_until(lambda: found.start(HEAD, *check).wait() == 0, 300, f"ray start: see {folder}/ray.log")
        yield found
    finally:
        found.close()


def test_a_cut_link_costs_at_most_the_node_behind_it(machines: Machines, tmp_path: Path, repository: Path) -> None:
    """Cut for a moment, nothing happens. Cut for longer, the node is given up and its blocks are done elsewhere; once the link is back the
    node sees that and leaves, and, started again, takes part again."""
    node = machines.start_ray(NODE)
    job = subprocess.Popen(
        ["ip", "netns", "exec", machines.names[HEAD], sys.executable, "-m", "benchmarks.cluster", "--job", str(tmp_path), "2", "240"],
        cwd=repository,
        env=machines.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def actors() -> int:
        return len(list(tmp_path.glob("began-*")))

    def parts() -> int:
        return len(list(tmp_path.glob("parts/*.parquet")))

    wait_for(lambda: actors() == 2 and parts() >= 2, job)
    machines.cut()
    time.sleep(3)
    machines.mend()
    seen = parts()
    wait_for(lambda: parts() >= seen + 10, job)
    assert actors() == 2 and node.poll() is None, "three seconds are no reason to give a node up"

    machines.cut()
    time.sleep(30)  # longer than the head's patience
    seen = parts()
    wait_for(lambda: parts() >= seen + 2, job)  # the head's own actor goes on
    machines.mend()
    wait_until(lambda: node.poll() is not None, 120, "the node that was given up has not noticed")
    machines.start_ray(NODE)
    wait_for(lambda: actors() == 3, job)
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
