"""What goes to an MLflow server over HTTP, and that training never minds one that fails."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rbft.config import TrainingConfig
from rbft.errors import TrainingError, TrainingStopped
from rbft.training.log import StageLog
from rbft.training.tracking import MLflowRun, Outcome


class Server:
    """Answers the five routes that are used as MLflow 3 does, and keeps what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any], str | None]] = []
        self.fails = False
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(404, {"error_code": "RESOURCE_DOES_NOT_EXIST"})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = self.path.removeprefix("/api/2.0/mlflow/")
                answers: dict[str, dict[str, Any]] = {
                    "experiments/create": {"experiment_id": "7"},
                    "runs/create": {"run": {"info": {"run_id": "r1"}}},
                }
                if server.fails:
                    self._answer(500, {"error_code": "INTERNAL_ERROR"})
                else:
                    server.calls.append((name, body, self.headers["Authorization"]))
                    self._answer(200, answers.get(name, {}))

            def _answer(self, status: int, content: dict[str, Any]) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def bodies(self, name: str) -> list[dict[str, Any]]:
        return [body for called, body, _ in self.calls if called == name]


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


def open_run(url: str, folder: Path) -> MLflowRun:
    return MLflowRun(url, folder, "homes", "rb-ft/classify", {"seed": 3, "lr_language": 1e-5}, {"base": "abcd"})


def test_a_stage_is_a_run_with_its_parameters_its_lineage_and_every_number_of_its_log(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    run = open_run(server.url, tmp_path)
    for step in (1, 2):
        run.write({"step": step, "num_steps": 2, "loss": 1 / step, "spike": True, "spike_ids": ["a", "b"]})
    run.close("FINISHED")
    assert [name for name, _, _ in server.calls[:2]] == ["experiments/create", "runs/create"]
    assert {authorization for _, _, authorization in server.calls} == {"Bearer secret"}
    (created,) = server.bodies("runs/create")
    assert (created["experiment_id"], created["run_name"]) == ("7", "rb-ft/classify")
    assert created["tags"] == [{"key": "base", "value": "abcd"}]
    first, *batches = server.bodies("runs/log-batch")
    assert first["params"] == [{"key": "seed", "value": "3"}, {"key": "lr_language", "value": "1e-05"}]
    metrics = {(each["key"], each["step"]): each["value"] for batch in batches for each in batch["metrics"]}
    assert metrics == {("loss", 1): 1.0, ("spike", 1): 1.0, ("loss", 2): 0.5, ("spike", 2): 1.0}
    assert server.bodies("runs/update")[0]["status"] == "FINISHED"


@pytest.mark.parametrize(
    ("error", "expected"),
    [(None, "FINISHED"), (TrainingStopped("told to"), "KILLED"), (TrainingError("too many bad videos"), "FAILED"), (OSError(), "FAILED")],
)
def test_a_run_ends_as_its_stage_does(server: Server, tmp_path: Path, error: Exception | None, expected: str) -> None:
    with contextlib.suppress(TrainingError, TrainingStopped, OSError), StageLog(tmp_path, 0, open_run(server.url, tmp_path)) as log:
        log.write({"step": 1, "loss": 1.0})
        if error is not None:
            raise error
    assert [update["status"] for update in server.bodies("runs/update")] == [expected]


def test_a_resumed_stage_goes_on_in_its_run_which_runs_again(server: Server, tmp_path: Path) -> None:
    stopped_and_failed: tuple[Outcome, ...] = ("KILLED", "FAILED")
    for step, outcome in enumerate(stopped_and_failed, 1):
        run = open_run(server.url, tmp_path)
        run.write({"step": step, "loss": 1.0})
        run.close(outcome)
    open_run(server.url, tmp_path).close("FINISHED")  # all steps were taken; what failed after them now did not
    assert len(server.bodies("runs/create")) == 1
    assert [batch["run_id"] for batch in server.bodies("runs/log-batch")] == ["r1"] * 3
    updates = server.bodies("runs/update")
    assert [update["status"] for update in updates] == ["KILLED", "RUNNING", "FAILED", "FINISHED"]
    assert [update["run_id"] for update in updates] == ["r1"] * 4
    assert ["end_time" in update for update in updates] == [True, False, True, True]


def test_a_server_that_fails_is_told_of_once_and_holds_nobody_up(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server.fails = True
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        run = open_run(server.url, tmp_path)
        for step in range(5):
            run.write({"step": step, "loss": 1.0})
        run.close("FINISHED")
        gone = open_run("http://127.0.0.1:9", tmp_path)  # nobody listens there
        gone.write({"step": 1, "loss": 1.0})
        gone.close("FINISHED")
    assert time.monotonic() - started < 5
    told = [record.getMessage() for record in caplog.records if record.name == "rbft.training.tracking"]
    assert len(told) == 2 and "HTTP 500" in told[0] and all("training goes on" in each for each in told)


def test_what_is_no_servers_address_is_refused() -> None:
    for wrong in ("sqlite:///x.db", "mlruns", "http://user:key@host"):
        with pytest.raises(ValueError, match=r"http://|user, password") as caught:
            TrainingConfig(mlflow_uri=wrong)
        assert "key@" not in str(caught.value).split("[type=")[0]
