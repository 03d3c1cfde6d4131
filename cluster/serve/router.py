"""A request router for Ray Serve: replicas are chosen by the conductor, in this process.

@serve.deployment(
    request_router_config=RequestRouterConfig(
        request_router_class="cluster.serve.router.KVCacheRouter",
        request_router_kwargs={"policy": "joint"},
    )
)
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from ray.serve.request_router import (
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from cluster.serve.prompts import ServePrompt, prompt_of
from cluster.serve.replicas import Replicas

_NO_PROMPT = ServePrompt(1, (), 0)


class KVCacheRouter(RequestRouter):
    """For LLM deployments of Ray Serve, and any other whose requests have a prompt.

    Serve makes one for each handle and proxy, on its event loop; each knows what itself has routed,
    and the queue lengths that replicas report to it. A replica that is full is passed over for the
    next best one.
    """

    def initialize_state(  # type: ignore[override]  # called with the keywords of its settings
        self,
        policy: str = "joint",
        block_size_tokens: int = 16,
        blocks_per_replica: int = 16_384,
    ) -> None:
        """`request_router_kwargs`. `policy`: a name of `POLICY_NAMES`; `blocks_per_replica`: what
        the engine's cache holds, of blocks of `block_size_tokens`.

        Raises InvalidArgumentError for values that cannot be.
        """
        self._block_size_tokens = block_size_tokens
        self._conducted = Replicas(
            time.monotonic,
            policy=policy,
            block_size_tokens=block_size_tokens,
            blocks_per_replica=blocks_per_replica,
        )
        self._prompts: dict[str, ServePrompt] = {}
        """Of requests that have no replica yet."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._conducted.update({_name(replica.replica_id) for replica in replicas})

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._conducted.forget(_name(replica_id))

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The best one; if that is full, the one among the others with the shortest queue."""
        if pending_request is None or not candidate_replicas:
            return [list(candidate_replicas)]
        self._report(candidate_replicas)
        by_name = {_name(replica.replica_id): replica for replica in candidate_replicas}
        request_id = pending_request.metadata.internal_request_id
        if request_id not in self._prompts:
            self._prompts[request_id] = self._prompt(pending_request)
            pending_request.future.add_done_callback(partial(self._settled, request_id))
        pending_request.routing_context.should_backoff = True  # when all of them are full
        ranked = self._conducted.rank(request_id, self._prompts[request_id], by_name)
        best, *others = [by_name[name] for name in ranked]
        return [[best], others] if others else [[best]]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: object
    ) -> None:
        request_id = pending_request.metadata.internal_request_id
        prompt = self._prompts.pop(request_id, None) or self._prompt(pending_request)
        self._conducted.routed(request_id, _name(replica_id), prompt)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Also when that replica refused it, while it goes to another one."""
        self._prompts.pop(internal_request_id, None)
        self._conducted.completed(internal_request_id, _name(replica_id))

    def _prompt(self, request: PendingRequest) -> ServePrompt:
        model_id = request.metadata.multiplexed_model_id
        prompt = prompt_of(request.args, request.kwargs, self._block_size_tokens, model_id)
        return prompt or _NO_PROMPT

    def _report(self, replicas: list[RunningReplica]) -> None:
        for replica in replicas:
            ongoing = self.replica_queue_len_cache.get(replica.replica_id)
            if ongoing is not None:
                self._conducted.report(_name(replica.replica_id), ongoing)

    def _settled(self, request_id: str, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            self._prompts.pop(request_id, None)
            self._conducted.cancel(request_id)


def _name(replica_id: ReplicaID) -> str:
    name: str = replica_id.to_full_id_str()
    return name
