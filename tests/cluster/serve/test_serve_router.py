"""A toy deployment of Ray Serve whose replicas the conductor chooses."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.launch.ray_instance import RayInstance

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Serve itself imports
        from ray import serve
        from ray.serve.config import RequestRouterConfig
except ModuleNotFoundError as error:
    pytest.skip(f"Ray Serve is not installed: {error}", allow_module_level=True)

ROUTER = "cluster.serve.router.KVCacheRouter"


class Toy:
    """Says who it is; a prompt that it has seen the beginning of is "cached"."""

    def __init__(self) -> None:
        self._seen: list[str] = []

    async def __call__(self, prompt: str) -> tuple[str, bool]:
        cached = any(prompt.startswith(seen) for seen in self._seen)
        self._seen.append(prompt)
        return str(serve.get_replica_context().replica_id.unique_id), cached


@pytest.fixture
async def handle() -> Iterator[Any]:
    instance = RayInstance(None)
    instance.start()
    router = RequestRouterConfig(
        request_router_class=ROUTER, request_router_kwargs={"blocks_per_replica": 10_000}
    )
    deployment = serve.deployment(
        Toy,
        num_replicas=2,
        ray_actor_options={"num_cpus": 0},
        request_router_config=router,
    )
    try:
        yield serve.run(deployment.bind(), name="toy", route_prefix=None)
    finally:
        serve.shutdown()
        await instance.stop()


async def test_turns_of_a_conversation_go_to_one_replica(handle: Any) -> None:
    talks = [" ".join(f"{name}{word}" for word in range(600)) for name in "abcdef"]
    first = [await handle.remote(talk) for talk in talks]
    assert len({replica for replica, _ in first}) == 2  # neither is idle
    for _ in range(3):
        talks = [talk + " and then some more" * 20 for talk in talks]
        again = [await handle.remote(talk) for talk in talks]
        assert [replica for replica, _ in again] == [replica for replica, _ in first]
        assert all(cached for _, cached in again)
    assert sys.modules.get("cluster.serve.router") is not None
