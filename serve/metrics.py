"""What `/metrics` tells: one replica's requests, phases, queues and clips, in the text format of Prometheus.

The labels are bounded: routes by their templates, methods and statuses of HTTP, phases and queues of ours. Nothing in them is a client's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from rbft.api import ModelVersion

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4

NO_ROUTE = "none"
"""In place of a path that no route has, whatever it was."""
NO_STATUS = "none"
"""Of a request that nobody was left to answer."""

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Up to the default of `serve.request_timeout_s`."""
_PHASE_SECONDS = (0.001, *_REQUEST_SECONDS)


def method_of(method: str) -> str:
    """`method` if HTTP has it, else "other": clients can make up what they like."""
    return method if method in _METHODS else "other"


class QueueState(Protocol):
    @property
    def num_running(self) -> int: ...

    @property
    def num_waiting(self) -> int: ...


class CacheState(Protocol):
    @property
    def num_bytes(self) -> int: ...

    @property
    def num_clips(self) -> int: ...


class ReadyState(Protocol):
    @property
    def is_ready(self) -> bool: ...


class _Bound(dict[tuple[str, ...], Any]):
    """The series of `metric` by their labels but the first, which is the replica; each is looked up in the library once."""

    def __init__(self, metric: Counter | Histogram, replica: str) -> None:
        super().__init__()
        self._metric = metric
        self._replica = replica

    def __missing__(self, labels: tuple[str, ...]) -> Any:
        found = self[labels] = self._metric.labels(self._replica, *labels)
        return found


class Metrics:
    """Of the replica with the id `replica`, in a registry of its own: a process may hold several services."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._registry = CollectorRegistry()
        requests = Counter(
            "rbft_serve_requests", "Requests answered or refused", ("replica", "route", "method", "status"), registry=self._registry
        )
        self._requests = _Bound(requests, replica)
        about = "From a request's first byte to the last of its answer"
        self._request_seconds = self._histogram("rbft_serve_request_seconds", about, "route", _REQUEST_SECONDS)
        about = "Phases of requests, as timing_s has them in answers; those that failed in a phase too"
        self._phase_seconds = self._histogram("rbft_serve_phase_seconds", about, "phase", _PHASE_SECONDS)

    def request(self, route: str, method: str, status: int | None, seconds: float) -> None:
        """Count a request that has ended. `route` is a template or `NO_ROUTE`, `method` of `method_of`."""
        self._requests[route, method, NO_STATUS if status is None else str(status)].inc()
        self._request_seconds[route,].observe(seconds)

    def phase(self, name: str, seconds: float) -> None:
        """Count a phase that has ended. See `serve.service.Asker`."""
        self._phase_seconds[name,].observe(seconds)

    def watch(self, queues: Mapping[str, QueueState], clips: CacheState, readiness: ReadyState, models: Mapping[str, ModelVersion]) -> None:
        """Have these read whenever somebody asks, which costs requests nothing. `models` by what they are there for."""
        running = self._gauge("rbft_serve_queue_running", "Requests that have their turn", "queue")
        waiting = self._gauge("rbft_serve_queue_waiting", "Requests that wait for their turn", "queue")
        for name, queue in queues.items():
            running.labels(self._replica, name).set_function(partial(getattr, queue, "num_running"))
            waiting.labels(self._replica, name).set_function(partial(getattr, queue, "num_waiting"))
        clip_bytes = self._gauge("rbft_serve_clip_cache_bytes", "Decoded frames that are kept")
        clip_bytes.labels(self._replica).set_function(lambda: clips.num_bytes)
        self._gauge("rbft_serve_clip_cache_clips", "Videos that are kept").labels(self._replica).set_function(lambda: clips.num_clips)
        ready = self._gauge("rbft_serve_ready", "1 if the last look found canaries passed and engine alive, else 0")
        ready.labels(self._replica).set_function(lambda: readiness.is_ready)
        info = Info("rbft_serve_model", "The models that answer", ("replica", "role"), registry=self._registry)
        for role, version in models.items():
            info.labels(self._replica, role).info({"name": version.name, "fingerprint": version.fingerprint})

    def text(self) -> bytes:
        """All of it as it is now, as `MEDIA_TYPE`."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, about: str, label: str, buckets: Sequence[float]) -> _Bound:
        return _Bound(Histogram(name, about, ("replica", label), buckets=buckets, registry=self._registry), self._replica)

    def _gauge(self, name: str, about: str, *labels: str) -> Gauge:
        return Gauge(name, about, ("replica", *labels), registry=self._registry)
