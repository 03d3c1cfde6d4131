"""Targets, sessions and priorities: from headers and bodies to the conductor."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def cluster(shared_cluster):
    return shared_cluster.reset()


async def route_of(cluster, headers=None, **body):
    cluster.conductor.routes.clear()
    await cluster.openai.completions.create(
        model="tiny", prompt="fox", extra_headers=headers or {}, extra_body=body
    )
    (route,) = cluster.conductor.routes
    return route


@pytest.mark.parametrize(
    ("headers", "body", "targets_s"),
    [
        ({}, {}, (0, 0)),
        ({"x-slo-ttft-ms": "1500"}, {}, (1.5, 0)),
        ({"x-slo-ttft-ms": "1500", "x-slo-itl-ms": "2.5"}, {}, (1.5, 0.0025)),
        ({}, {"slo_ttft_ms": 100, "slo_itl_ms": 7.5}, (0.1, 0.0075)),
        ({"x-slo-ttft-ms": "1"}, {"slo_ttft_ms": 2000}, (2, 0)),
        ({"x-slo-ttft-ms": "1000"}, {"slo_ttft_ms": None}, (1, 0)),
    ],
)
async def test_targets(cluster, headers, body, targets_s) -> None:
    route = await route_of(cluster, headers, **body)
    assert (route.ttft_target_s, route.itl_target_s) == targets_s


@pytest.mark.parametrize("name", ["x-slo-ttft-ms", "x-slo-itl-ms"])
@pytest.mark.parametrize("value", ["", "0", "-1", "nan", "inf", "1e9", "soon", "1,5", "0x10"])
async def test_absurd_targets(cluster, name, value) -> None:
    body = {"model": "tiny", "prompt": "fox"}
    response = await cluster.http.post("/v1/completions", json=body, headers={name: value})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == name
    assert error["message"].startswith(name)


async def test_sessions(cluster) -> None:
    named = await route_of(cluster, {"x-session-id": "one"}, user="someone")
    again = await route_of(cluster, {"x-session-id": "one"})
    other = await route_of(cluster, user="someone", prompt_cache_key="key")
    user = await route_of(cluster, user="someone")
    none = await route_of(cluster, user="")
    assert named.session == again.session
    assert len({route.session for route in (named, other, user, none)}) == 4
    assert none.session == ""
    assert "someone" not in user.session


async def test_long_names_of_sessions(cluster) -> None:
    assert len((await route_of(cluster, user="x" * 10_000)).session) == 32
    body = {"model": "tiny", "prompt": "fox"}
    headers = {"x-session-id": "x" * 257}
    response = await cluster.http.post("/v1/completions", json=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "x-session-id"


async def test_targets_of_a_chat(cluster) -> None:
    await cluster.openai.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hello"}],
        extra_body={"slo_ttft_ms": 250},
    )
    (route,) = cluster.conductor.routes
    assert route.ttft_target_s == 0.25
