"""Attention as a Ray Serve deployment of its own, so that what it costs is not taken from the classifier: weights, process, queue.

A classifier's replica passes on the clip that it has decoded, in uint8, and gets pictures back.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from rbft import storage
from rbft.config import RunConfig
from rbft.errors import EngineGoneError, OverloadedError, RBFTError
from rbft.records import Clip
from serve.attention import AttentionModel, Looks
from serve.model import ModelSource, open_model

_PRIORITY = 10
"""As `nice` counts. On a machine without a GPU it reads with cores that the classifier's engine is given, too."""


class AttentionReplica:
    """The model of `source`, loaded by transformers. Serve replaces it when its process has died."""

    def __init__(self, config: RunConfig, source: ModelSource) -> None:
        if not config.serve.attention_num_gpus:
            os.nice(_PRIORITY)
        self._open = ExitStack()
        folder = self._open.enter_context(storage.local_folder(source.uri))
        served = open_model(source, folder, config)
        self._model = AttentionModel(served, config.model, config.evaluation.attention.num_layers)

    async def look(self, clip: Clip, context: str | None) -> Looks:
        return await self._model.look(clip, context)

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self._open.close()


class RemoteLooker:
    """An `AttentionReplica` as a classifier's replica sees it. See `serve.attention.Looker`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def look(self, clip: Clip, context: str | None) -> Looks:
        response = self._handle.look.remote(clip, context)
        try:
            looks: Looks = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except BackPressureError:
            raise OverloadedError("too many videos wait for their attention already; try again later") from None
        except RayTaskError as error:
            if isinstance(error.cause, RBFTError):
                raise error.cause from None
            raise
        except (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError):
            raise EngineGoneError("what reads attention is being replaced; try again later") from None
        return looks


def attention_application(config: RunConfig, source: ModelSource) -> Application | None:
    """What to bind the classifier's deployment with; None where `serve.attention` is off."""
    if not config.serve.attention:
        return None
    deployment = serve.deployment(
        AttentionReplica,
        name="attention",
        ray_actor_options={"num_cpus": config.serve.attention_num_cpus, "num_gpus": config.serve.attention_num_gpus},
        # One is read, the next is there already; more than can wait is told at once.
        max_ongoing_requests=2,
        max_queued_requests=config.serve.max_queued_requests,
        max_constructor_retry_count=2,
    )
    return deployment.bind(config, source)
