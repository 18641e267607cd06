"""The classifier as a Ray Serve deployment: one replica is one engine with its decoders."""

from __future__ import annotations

import logging
from contextlib import ExitStack

from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig
from ray.serve.handle import DeploymentHandle

from rbft import storage
from rbft.config import RunConfig
from rbft.engines.base import Sampling
from rbft.errors import JobError
from serve.app import build_app
from serve.attention_deployment import RemoteLooker, attention_application
from serve.canary import Readiness
from serve.classifier import VideoClassifier
from serve.model import ModelSource, open_model
from serve.problems import RETRY_AFTER_S
from serve.service import NUM_QUEUES

APPLICATION = "rbft"
"""What Serve calls it."""

_OTHER_ROOM = 32
"""Requests that a replica takes beyond its queues, labels and texts: what is fetched, looked at or shown, and health and task, which are
answered while it is full."""


class Replica:
    """One engine and its decoders, behind the routes. Serve builds it in a running event loop and replaces it when `check_health` fails."""

    def __init__(self, config: RunConfig, source: ModelSource, attention: DeploymentHandle | None = None) -> None:
        _log_requests()
        # Heavy, and only a replica needs them: what deploys should not load an engine.
        from rbft.engines.vllm import VllmEngine
        from rbft.video.limits import SourceLimits
        from rbft.video.pool import DecodePool

        self._config = config
        self._looker = None if attention is None else RemoteLooker(attention)
        self._open = ExitStack()
        folder = self._open.enter_context(storage.local_folder(source.uri))
        model = open_model(source, folder, config)
        limits = SourceLimits(config.serve.max_duration_s, config.serve.max_frames, config.serve.max_frame_pixels)
        decoders = DecodePool(config.engine.decode_workers, config.video.timeout_s, config.video.memory_limit_bytes, limits)
        self._open.callback(decoders.close)
        engine = VllmEngine(config.model.model_copy(update={"path": str(folder)}), config.engine, model.spec, seed=config.seed)
        self._open.callback(engine.close)
        sampling = Sampling(config.generation.max_new_tokens, config.generation.temperature, config.seed)
        self._classifier = VideoClassifier(engine, decoders, model, sampling)
        self._readiness = Readiness(self._classifier, config.serve.canary)

    def __serve_build_asgi_app__(self) -> FastAPI:
        sizes = _max_classifying(self._config), _max_explaining(self._config)
        return build_app(self._classifier, self._config.serve, *sizes, looker=self._looker, readiness=self._readiness, proxy_adds_id=True)

    async def check_health(self) -> None:
        """Serve asks once before it sends anything here, and a canary that fails then fails the start."""
        await self._readiness.check()

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self._open.close()


def deploy(config: RunConfig, source: ModelSource, port: int) -> None:
    """Serve the model `source` at `config.serve.host` and `port` on the Ray that this process is connected to; returns when it answers.

    Raises `JobError` with the reason if no replica starts. The host and port of a Serve that runs already stay as they are.
    """
    # The replica's own queue and time limit answer with problem bodies; Serve's stand behind them.
    room = _max_classifying(config) + _max_explaining(config) + NUM_QUEUES * config.serve.max_queued_requests + _OTHER_ROOM
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="classifier",
        num_replicas=config.serve.num_replicas,
        ray_actor_options={"num_cpus": config.engine.num_cpus, "num_gpus": config.engine.num_gpus},
        max_ongoing_requests=room,
        max_queued_requests=room,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        # Serve replaces a replica after three failed checks in a row: a dead engine is gone in three seconds.
        health_check_period_s=1,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=30,
        # A start that fails twice fails for a reason that a third will not mend.
        max_constructor_retry_count=2,
    )
    timeout_s = config.serve.body_timeout_s + config.serve.request_timeout_s + 30
    serve.start(http_options={"host": config.serve.host, "port": port, "request_timeout_s": timeout_s})
    try:
        serve.run(deployment.bind(config, source, attention_application(config, source)), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise JobError(f"{source.uri}: cannot be served: {_reason(error)}; the logs are in /tmp/ray/session_latest/logs/serve") from error


def cpus_needed(config: RunConfig) -> float:
    """What the deployments reserve in Ray together."""
    attention = config.serve.attention_num_cpus if config.serve.attention else 0
    return config.engine.num_cpus * config.serve.num_replicas + attention


def _reason(error: RuntimeError) -> str:
    """The last line of what Serve knows of the failed replica, which is its exception; else what Serve says."""
    application = serve.status().applications.get(APPLICATION)
    messages = [deployment.message for deployment in application.deployments.values()] if application else []
    lines = [line.strip() for line in "\n".join(messages).splitlines() if line.strip()]
    return lines[-1] if lines else str(error)


def _log_requests() -> None:
    """Our lines go to the replica's stderr, which Ray keeps beside its other logs."""
    ours = logging.getLogger("serve")
    ours.setLevel(logging.INFO)
    if not ours.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        ours.addHandler(handler)


def _max_classifying(config: RunConfig) -> int:
    # Twice what fits in an engine step: while one half is in the engine, the other is being decoded.
    return 2 * config.engine.max_num_seqs


def _max_explaining(config: RunConfig) -> int:
    # Half of a step: a rationale keeps its place in it for seconds, and classifications must find one.
    return max(1, config.engine.max_num_seqs // 2)
