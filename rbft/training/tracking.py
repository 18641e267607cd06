"""The scalars of a stage in an MLflow tracking server, by its REST API: nothing has to be installed for it.

    experiment = the run's name    run = the stage    parameters = how it is trained    tags = lineage    metrics = those of log.jsonl

Training never waits for the server and never ends with it: a thread sends, what cannot be sent is left out, and that is said once. A
resumed stage goes on in the run it had, which runs again; what it logs again stands there twice, with the same step. A run ends as its
stage does: FINISHED, KILLED if it was told to stop, or FAILED. One whose driver and workers were killed outright stays RUNNING.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import httpx

from rbft import storage
from rbft.errors import RBFTError

FILE = "mlflow.json"
"""In the stage's folder: the run it has on the server."""
_TIMEOUT_S = 10.0
_MOST_WAITING = 1000
"""Lines; a server that is so far behind misses the newest."""
_MOST_METRICS = 1000
"""Of one request; the API's own limit. As many parameters as 100, of at most 500 characters."""

_LOG = logging.getLogger(__name__)

Outcome = Literal["FINISHED", "FAILED", "KILLED"]
"""Of a stage, in MLflow's words. "KILLED": it was told to stop, and can go on."""


class MLflowRun:
    """One stage's run on the tracking server at `uri`; seen to work with MLflow 3.17.

    Credentials are those that MLflow's own client takes: MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    """

    def __init__(self, uri: str, folder: Path, experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        auth = (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user and not token else None
        self._client = httpx.Client(base_url=uri, headers=headers, auth=auth, timeout=_TIMEOUT_S)
        self._uri, self._path, self._experiment, self._name = uri, folder / FILE, experiment, name
        self._params, self._tags = dict(params), dict(tags)
        self._waiting: queue.Queue[tuple[int, Mapping[str, Any]] | Outcome] = queue.Queue(_MOST_WAITING)
        self._has_warned = False
        self._thread = threading.Thread(target=self._send_all, daemon=True, name="rbft-mlflow")
        self._thread.start()

    def write(self, line: Mapping[str, Any]) -> None:
        """Have the numbers of `line` sent, as metrics of its "step"."""
        try:
            self._waiting.put_nowait((int(time.time() * 1000), line))
        except queue.Full:
            self._warn("it is too far behind")

    def close(self, outcome: Outcome) -> None:
        """Send what is still waiting, for at most a timeout, and end the run."""
        try:
            self._waiting.put(outcome, timeout=_TIMEOUT_S)
            self._thread.join(_TIMEOUT_S)
        except queue.Full:
            self._warn("it is too far behind")
        self._client.close()

    def _send_all(self) -> None:
        run_id: str | None = None
        while not isinstance(entry := self._waiting.get(), str):
            entries = [entry]
            while not self._waiting.empty() and sum(len(line) for _, line in entries) < _MOST_METRICS // 2:
                following = self._waiting.get()
                if isinstance(following, str):
                    self._waiting.put(following)
                    break
                entries.append(following)
            try:
                run_id = run_id or self._open()
                self._post("runs/log-batch", {"run_id": run_id, "metrics": [each for entry in entries for each in _metrics(*entry)]})
            except (httpx.HTTPError, RBFTError, RuntimeError, OSError, ValueError, KeyError) as error:
                self._warn(str(error) or type(error).__name__)
        try:
            # A stage that had nothing left to log, as its last step was taken before, ends the run it had.
            if (run_id := run_id or self._known_run()) is not None:
                self._post("runs/update", {"run_id": run_id, "status": entry, "end_time": int(time.time() * 1000)})
        except (httpx.HTTPError, RuntimeError, OSError, ValueError, KeyError) as error:
            self._warn(str(error) or type(error).__name__)

    def _open(self) -> str:
        """The id of this stage's run, made or found."""
        if (known := self._known_run()) is not None:
            self._post("runs/update", {"run_id": known, "status": "RUNNING"})
            return known
        experiment_id = self._experiment_id()
        tags = {name: str(value)[:5000] for name, value in self._tags.items()}
        created = self._post(
            "runs/create",
            {
                "experiment_id": experiment_id,
                "run_name": self._name,
                "start_time": int(time.time() * 1000),
                "tags": [{"key": name, "value": value} for name, value in tags.items()],
            },
        )
        run_id = str(created["run"]["info"]["run_id"])
        params = [{"key": name, "value": str(value)[:500]} for name, value in self._params.items()]
        self._post("runs/log-batch", {"run_id": run_id, "params": params[:100]})
        storage.write_bytes(str(self._path), json.dumps({"uri": self._uri, "run_id": run_id}).encode())
        return run_id

    def _known_run(self) -> str | None:
        """The id of the run that this stage has on the server already."""
        if not self._path.exists():
            return None
        known = json.loads(self._path.read_text())
        return str(known["run_id"]) if known["uri"] == self._uri else None

    def _experiment_id(self) -> str:
        found = self._client.get("/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": self._experiment})
        if found.status_code == 404:
            return str(self._post("experiments/create", {"name": self._experiment})["experiment_id"])
        return str(_checked(found)["experiment"]["experiment_id"])

    def _post(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        return _checked(self._client.post(f"/api/2.0/mlflow/{what}", json=body))

    def _warn(self, why: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            _LOG.warning("mlflow: cannot send to %s: %s; training goes on, and log.jsonl has everything", self._uri, why)


def _checked(response: httpx.Response) -> dict[str, Any]:
    if response.is_error:
        raise RuntimeError(f"HTTP {response.status_code}: {' '.join(response.text.split())[:200]}")
    return dict(response.json())


def _metrics(timestamp_ms: int, line: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"key": name, "value": float(value), "timestamp": timestamp_ms, "step": int(line["step"])}
        for name, value in line.items()
        if name not in ("step", "num_steps") and isinstance(value, int | float)
    ]
