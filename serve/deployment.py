"""The classifier as a Ray Serve deployment: one replica is one engine with its decoders, and another where another model explains."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import cloudpickle, serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from rbft import storage
from rbft.config import EngineConfig, ModelConfig, RunConfig
from rbft.engines.base import Sampling, StreamingEngine
from rbft.errors import JobError
from rbft.records import VideoSpec
from serve import routing
from serve.app import build_app
from serve.attention_deployment import RemoteLooker, attention_application
from serve.canary import Readiness
from serve.classifier import VideoClassifier, Writer
from serve.model import ModelSource, local_writer, open_model, open_writer
from serve.problems import RETRY_AFTER_S
from serve.replicas import OtherReplicas, answered, expired
from serve.service import NUM_QUEUES, Classifier

APPLICATION = "rbft"
"""What Serve calls it."""

_NO_ACCESS_LOG = LoggingConfig(enable_access_log=False)
"""A request has its line from `serve.envelope`; Serve's two more, of the proxy and of the replica, say nothing else and cost CPU."""

_OTHER_ROOM = 32
"""Requests that a replica takes beyond its queues, labels and texts: what is fetched, looked at or shown, and health and task, which are
answered while it is full."""


OpenClassifier = Callable[[ExitStack], Classifier]
"""Makes what answers, in a running event loop, and has the stack close what it opens."""


class Replica:
    """One classifier behind the routes. Serve builds it in a running event loop and replaces it when `check_health` fails."""

    def __init__(self, config: RunConfig, open_classifier: OpenClassifier, attention: DeploymentHandle | None = None) -> None:
        _log_requests()
        self._open = ExitStack()
        classifier = open_classifier(self._open)
        self._readiness = Readiness(classifier, config.serve.canary)
        self._others = OtherReplicas()
        self._app = build_app(
            classifier,
            config.serve,
            _max_classifying(config),
            _max_explaining(config),
            looker=None if attention is None else RemoteLooker(attention),
            readiness=self._readiness,
            others=self._others,
            proxy_adds_id=True,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    async def ask(self, method: str, request_id: str, owner: str, arguments: tuple[Any, ...], *, replica: str) -> AsyncGenerator[Any, None]:
        """What `replica` is asked by another (`serve.replicas`), if it is this one."""
        if replica != self._others.own_id:
            raise expired()
        async for each in answered(self._app.state.service, self._app.state.metrics.phase, method, request_id, owner, arguments):
            yield each

    async def check_health(self) -> None:
        """Serve asks once before it sends anything here, and a canary that fails then fails the start."""
        await self._readiness.check()

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self._open.close()


StartEngine = Callable[[ModelConfig, EngineConfig, VideoSpec, int], StreamingEngine]
"""As `rbft.engines.vllm.VllmEngine` is built."""


def open_video_classifier(
    config: RunConfig, source: ModelSource, stack: ExitStack, start_engine: StartEngine | None = None
) -> VideoClassifier:
    """The model of `source` in an engine, with its decoders, and its writer's in another. What has been opened is closed if the rest fails.
    `start_engine` is for tests, which have quicker ones."""
    # Heavy, and only a replica needs them: what deploys should not load an engine.
    from rbft.video.limits import SourceLimits
    from rbft.video.pool import DecodePool

    if start_engine is None:
        from rbft.engines.vllm import VllmEngine

        start_engine = VllmEngine
    with ExitStack() as opened:
        folder = opened.enter_context(storage.local_folder(source.uri))
        model = open_model(source, folder, config)
        writes = None
        if source.writer is not None:  # before the engines, which take a minute: it may not fit
            writes = open_writer(source, opened.enter_context(local_writer(source.writer, config)), model)
        limits = SourceLimits(config.serve.max_duration_s, config.serve.max_frames, config.serve.max_frame_pixels)
        decoders = DecodePool(config.engine.decode_workers, config.video.timeout_s, config.video.memory_limit_bytes, limits)
        opened.callback(decoders.close)
        share = config.engine if writes is None else _half(config.engine)
        engine = start_engine(_at(config.model, folder), share, model.spec, config.seed)
        opened.callback(engine.close)
        writer = None
        if writes is not None:
            writer = Writer(start_engine(_at(config.model, writes.folder), share, model.spec, config.seed), writes)
            opened.callback(writer.engine.close)
        sampling = Sampling(config.generation.max_new_tokens, config.generation.temperature, config.seed)
        stack.push(opened.pop_all())
        return VideoClassifier(engine, decoders, model, sampling, writer)


def _at(model: ModelConfig, folder: Path) -> ModelConfig:
    return model.model_copy(update={"path": str(folder)})


def _half(engine: EngineConfig) -> EngineConfig:
    """What each of two engines in one replica may have of the memory that `engine` gives to one. Both are given the same: the size of the
    CPU's cache stands in the environment that they share."""
    return engine.model_copy(
        update={"gpu_memory_utilization": engine.gpu_memory_utilization / 2, "kv_cache_gib_cpu": engine.kv_cache_gib_cpu / 2}
    )


def video_application(config: RunConfig, source: ModelSource) -> Application:
    """What `serve.run` and `serve deploy` take: the model of `source`, and what reads its attention where that is on."""
    return make_application(config, partial(open_video_classifier, config, source), attention_application(config, source))


def make_application(config: RunConfig, open_classifier: OpenClassifier, attention: Application | None = None) -> Application:
    """The service around the classifier that `open_classifier` opens in each replica."""
    # The replica's own queue and time limit answer with problem bodies; Serve's stand behind them.
    room = _max_classifying(config) + _max_explaining(config) + NUM_QUEUES * config.serve.max_queued_requests + _OTHER_ROOM
    cloudpickle.register_pickle_by_value(routing)  # proxies need it, and have no code of ours
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="classifier",
        num_replicas=None if config.serve.max_replicas else config.serve.num_replicas,
        autoscaling_config=_autoscaling(config),
        ray_actor_options={"num_cpus": config.engine.num_cpus, "num_gpus": config.engine.num_gpus},
        max_ongoing_requests=room,
        max_queued_requests=room,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        request_router_config=RequestRouterConfig(
            request_router_class=routing.ReplicaRouter, request_router_kwargs={"retry_after_s": RETRY_AFTER_S}
        ),
        # Serve replaces a replica after three failed checks in a row: a dead engine is gone in three seconds.
        health_check_period_s=1,
        health_check_timeout_s=30,
        # What a replica that is taken away has begun, it ends.
        graceful_shutdown_timeout_s=math.ceil(config.serve.body_timeout_s + config.serve.request_timeout_s),
        graceful_shutdown_wait_loop_s=0.5,
        # Of an update the new replica answers before an old one goes; one more than otherwise, whatever their number.
        max_surge_percent=1 if config.serve.update_beside else 0,
        # A start that fails twice fails for a reason that a third will not mend.
        max_constructor_retry_count=2,
        logging_config=_NO_ACCESS_LOG,
    )
    return deployment.bind(config, open_classifier, attention)


def http_timeout_s(config: RunConfig) -> float:
    """For Serve's proxy: beyond any of ours."""
    return config.serve.body_timeout_s + config.serve.request_timeout_s + 30


def deploy(config: RunConfig, source: ModelSource, port: int) -> None:
    """Serve the model `source` at `config.serve.host` and `port` on the Ray that this process is connected to; returns when it answers.

    Raises `JobError` with the reason if no replica starts. The host and port of a Serve that runs already stay as they are.
    """
    serve.start(
        http_options={"host": config.serve.host, "port": port, "request_timeout_s": http_timeout_s(config)}, logging_config=_NO_ACCESS_LOG
    )
    try:
        serve.run(video_application(config, source), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise JobError(f"{source.uri}: cannot be served: {_reason(error)}; the logs are in /tmp/ray/session_latest/logs/serve") from error


def cpus_needed(config: RunConfig) -> float:
    """What the deployments reserve in Ray together."""
    attention = config.serve.attention_num_cpus if config.serve.attention else 0
    return config.engine.num_cpus * (config.serve.max_replicas or config.serve.num_replicas) + attention


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


def _autoscaling(config: RunConfig) -> AutoscalingConfig | None:
    if config.serve.max_replicas is None:
        return None
    # As many requests a replica as fill its engine's steps.
    return AutoscalingConfig(
        min_replicas=config.serve.min_replicas, max_replicas=config.serve.max_replicas, target_ongoing_requests=config.engine.max_num_seqs
    )


def _max_classifying(config: RunConfig) -> int:
    # Twice what fits in an engine step: while one half is in the engine, the other is being decoded.
    return 2 * config.engine.max_num_seqs


def _max_explaining(config: RunConfig) -> int:
    # A sixth of a step: a rationale keeps its place in it for seconds, and makes each of them longer for classifications.
    return max(1, config.engine.max_num_seqs // 6)
