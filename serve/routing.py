"""Which replica gets a request: the least busy of two, but what is about a kept video goes where it is kept.

Serve runs this in its proxies too, where only Ray is sure to be installed; so it goes there by value (`serve.deployment`), and this module
imports nothing else.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from ray.serve.exceptions import BackPressureError
from ray.serve.request_router import LocalityMixin, PendingRequest, RequestRouter, RunningReplica

REPLICA = "replica"
"""The keyword argument that names the replica which must get a call of a handle."""

_PATIENCE_S = 1.5
"""How long a request waits where no replica is left: an engine takes a minute to start, and whoever asks should know at once."""


class ReplicaRouter(LocalityMixin, RequestRouter):
    """Power of two choices (Mitzenmacher, 2001) among the replicas nearby, as Serve's own; a call with the argument `REPLICA` goes to that
    one, or, if it is gone, to any. Where there is none at all, requests are told to come again, instead of waiting for one."""

    retry_after_s = 5.0

    def initialize_state(self, retry_after_s: float = 5.0) -> None:
        """Given by the deployment (`request_router_kwargs`)."""
        self.retry_after_s = retry_after_s

    async def _choose_replica_for_request(self, pending_request: PendingRequest, *, is_retry: bool = False) -> RunningReplica:
        # Not of Serve's public interface; it overrides it in the same way (`ray.serve.experimental.capacity_queue_router`).
        until = time.monotonic() + _PATIENCE_S
        while not self.curr_replicas:
            if time.monotonic() > until:
                raise BackPressureError(self.num_pending_requests, 0, 503, self.retry_after_s)
            await asyncio.sleep(0.05)
        return await super()._choose_replica_for_request(pending_request, is_retry=is_retry)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        wanted = None if pending_request is None else pending_request.kwargs.get(REPLICA)
        holders = [replica for replica in candidate_replicas if replica.replica_id.unique_id == wanted]
        if pending_request is not None and holders:
            pending_request.routing_context.should_backoff = True  # while it is full
            return [holders]
        nearby: set[Any] = self.apply_locality_routing(pending_request)
        near = [replica for replica in candidate_replicas if replica.replica_id in nearby]
        return [random.sample(near, min(2, len(near)))]
