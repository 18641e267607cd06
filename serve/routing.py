"""Which replica gets a request: the least busy of two, but what is about a kept video goes where it is kept.

Serve runs this in its proxies too, where only Ray is sure to be installed; so it goes there by value (`serve.deployment`), and this module
imports nothing else.
"""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import LocalityMixin, PendingRequest, RequestRouter, RunningReplica

REPLICA = "replica"
"""The keyword argument that names the replica which must get a call of a handle."""


class ReplicaRouter(LocalityMixin, RequestRouter):
    """Power of two choices (Mitzenmacher, 2001) among the replicas nearby, as Serve's own; a call with the argument `REPLICA` goes to that
    one, or, if it is gone, to any."""

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
