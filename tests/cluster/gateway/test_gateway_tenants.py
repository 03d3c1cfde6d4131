"""API keys, tenants, their limits, and what the gateway may listen on."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway.app import Gateway
from cluster.gateway.config import GatewayConfig, TenantConfig
from cluster.gateway.errors import ApiKeyError, NotAllowedError, RateLimitError
from cluster.gateway.rate_limits import RateLimits, TokenBucket
from cluster.gateway.tenants import Tenants
from kvstore.core.errors import ConfigurationError, OverloadedError
from kvstore.core.hashing import block_hashes
from kvstore.core.identity import salted_root
from kvstore.testing.certificates import CA, authority
from kvstore.transports.security.clients import Clients, token_digest

PROMPT = list(range(1, 12))


def entry(name: str, tenant: str | None, roles: str) -> str:
    of_tenant = "" if tenant is None else f'tenant = "{tenant}"\n'
    digest = token_digest(f"key-of-{name}").hex()
    return f'[[client]]\nname = "{name}"\ntoken_sha256 = "{digest}"\n{of_tenant}roles = {roles}\n'


@pytest.fixture(scope="session")
def clients_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("clients") / "clients.toml"
    path.write_text(
        entry("a", "team-a", '["client"]')
        + entry("b", "team-b", '["client"]')
        + entry("c", "team-c", '["client"]')
        + entry("default", "", '["client"]')
        + entry("peer", None, '["peer"]')
        + entry("root", None, '["admin"]')
        + entry("late", "team-a", '["client"]')
        + "expires = 2020-01-01T00:00:00Z\n"
    )
    path.chmod(0o600)
    return path


@pytest.fixture
def gateway_settings(clients_file):
    tenants = {
        "team-b": TenantConfig(requests_per_min=2, cache_salt="shared"),
        "team-c": TenantConfig(tokens_per_min=20, cache_salt="shared"),
    }
    return {"clients": clients_file, "tenants": tenants}


def client_of(cluster, name: str) -> openai.AsyncOpenAI:
    return cluster.openai.with_options(api_key=f"key-of-{name}")


async def ask(cluster, name: str, **fields):
    return await client_of(cluster, name).completions.create(model="tiny", prompt=PROMPT, **fields)


def roots_of(cluster) -> list[bytes]:
    """Of the last request: as it was routed, and as its workers hash."""
    route, request = cluster.conductor.routes[-1], cluster.prefill.requests[-1]
    root = salted_root(cluster.model.identity_root, request.cache_salt)
    hashes = block_hashes(root, PROMPT, 4)
    assert route.routing_keys == b"".join(block_hash[:8] for block_hash in hashes)
    return hashes


async def test_the_key_tells_the_tenant(cluster) -> None:
    hashes = {}
    for name in ("a", "b", "c", "default", "root"):
        await ask(cluster, name)
        hashes[name] = tuple(roots_of(cluster))
    assert [route.tenant for route in cluster.conductor.routes] == [
        "team-a",
        "team-b",
        "team-c",
        "",
        "",
    ]
    assert hashes["b"] == hashes["c"], "they are configured to share"
    assert hashes["default"] == hashes["root"]
    assert len({hashes[name] for name in ("a", "b", "default")}) == 3
    assert hashes["default"] == tuple(block_hashes(cluster.model.identity_root, PROMPT, 4))


async def test_sessions_of_tenants_are_apart(cluster) -> None:
    for name in ("a", "c"):
        await ask(cluster, name, user="someone")
    first, second = cluster.conductor.routes
    assert first.session
    assert second.session
    assert first.session != second.session


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({}, "no API key"),
        ({"authorization": "Bearer wrong"}, "unknown"),
        ({"authorization": "Bearer key-of-late"}, "expired"),
        ({"authorization": "Basic key-of-a"}, "Bearer KEY"),
        ({"authorization": "Bearer"}, "unknown"),
        ({"authorization": "Bearer caf\xe9".encode("latin-1")}, "Bearer KEY"),
    ],
)
async def test_without_a_good_key_nothing_is_answered(cluster, headers, says) -> None:
    for method, path in (
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("POST", "/tokenize"),
        ("GET", "/v1/explain/x"),
        ("GET", "/metrics"),
        ("GET", "/nowhere"),
    ):
        response = await cluster.http.request(method, path, headers=headers, content=b"{")
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (401, "invalid_api_key")
        assert says in error["message"]
        assert response.headers["www-authenticate"] == "Bearer"
        assert "x-request-id" in response.headers
    assert cluster.conductor.routes == []


async def test_probes_need_no_key(cluster) -> None:
    assert (await cluster.http.get("/health")).status_code == 200
    assert set((await cluster.http.get("/version")).json()) == {"version"}


async def test_openai_knows_the_errors(cluster) -> None:
    with pytest.raises(openai.AuthenticationError):
        await ask(cluster, "nobody")
    with pytest.raises(openai.PermissionDeniedError):
        await ask(cluster, "peer")
    await ask(cluster, "b")
    await ask(cluster, "b")
    with pytest.raises(openai.RateLimitError) as caught:
        await ask(cluster, "b")
    assert "team-b has used up its requests" in caught.value.message
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
    assert 0 < int(caught.value.response.headers["retry-after-ms"]) <= 30_000
    await ask(cluster, "a")


async def test_metrics_are_for_administrators(cluster) -> None:
    for name, status in (("a", 403), ("root", 200)):
        headers = {"authorization": f"Bearer key-of-{name}"}
        assert (await cluster.http.get("/metrics", headers=headers)).status_code == status


async def test_tokens_of_prompt_and_answer_count(cluster) -> None:
    """11 tokens of a prompt, and at least 12 of answers."""
    await ask(cluster, "c", n=4, extra_body={"min_tokens": 3})
    with pytest.raises(openai.RateLimitError, match="its tokens of this minute"):
        await ask(cluster, "c")
    assert len(cluster.conductor.routes) == 1


async def test_explanations_are_for_their_tenant(cluster) -> None:
    answer = await ask(cluster, "a")
    found = {}
    for name in ("a", "b", "root"):
        headers = {"authorization": f"Bearer key-of-{name}"}
        response = await cluster.http.get(f"/v1/explain/{answer.id}", headers=headers)
        found[name] = response.status_code
    assert found == {"a": 200, "b": 404, "root": 200}


def test_without_keys_there_is_one_tenant() -> None:
    tenants = Tenants(None, {})
    tenant = tenants.of("Bearer anything")
    assert tenant == tenants.of(None)
    assert (tenant.name, tenant.cache_salt, tenant.is_admin) == ("default", "", True)


def test_keys_are_of_tenants(clients_file) -> None:
    tenants = Tenants(Clients.load("x", clients_file), {"team-a": TenantConfig(cache_salt="")})
    assert tenants.of("bearer key-of-a").cache_salt == ""
    assert tenants.of("bearer key-of-b").cache_salt == "team-b"
    with pytest.raises(NotAllowedError):
        tenants.of("Bearer key-of-peer")
    with pytest.raises(ApiKeyError, match="expired"):
        tenants.of("Bearer key-of-late")


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_bucket_fills_up_evenly_and_pays_its_debt() -> None:
    clock = Clock()
    bucket = TokenBucket(60, clock)
    bucket.take(100)
    assert bucket.wait_s(1) == pytest.approx(41)
    clock.now_s += 40
    assert bucket.wait_s(1) == pytest.approx(1)
    clock.now_s -= 500
    assert bucket.wait_s(1) == pytest.approx(1), "a clock that jumps back gives nothing"
    clock.now_s += 10_000
    bucket.take(60)
    assert bucket.wait_s(1) == pytest.approx(1), "no more than a minute's worth was saved up"


@given(st.integers(1, 50), st.lists(st.floats(0, 30), max_size=200))
def test_no_more_than_the_rate_and_a_burst_come_in(per_min, pauses) -> None:
    clock = Clock()
    limits = RateLimits({"t": TenantConfig(requests_per_min=per_min)}, clock)
    started_s, admitted = clock.now_s, 0
    for pause_s in pauses:
        clock.now_s += pause_s
        with suppress(RateLimitError):
            limits.admit("t")
            admitted += 1
    assert admitted <= per_min + per_min * (clock.now_s - started_s) / 60 + 1e-6


def test_what_is_told_to_wait_for_is_enough() -> None:
    clock = Clock()
    limits = RateLimits({"t": TenantConfig(requests_per_min=7, tokens_per_min=50)}, clock)
    limits.charge("t", 75)
    with pytest.raises(RateLimitError) as caught:
        limits.admit("t")
    clock.now_s += caught.value.retry_after_s + 1e-6
    limits.admit("t")
    limits.admit("of no limit")


async def test_retry_after_is_what_the_conductor_says(cluster) -> None:
    cluster.conductor.refusal = OverloadedError("too busy: x", retry_after_s=2.5)
    with pytest.raises(openai.RateLimitError, match="too busy") as caught:
        await ask(cluster, "a")
    assert caught.value.response.headers["retry-after"] == "3"
    assert caught.value.response.headers["retry-after-ms"] == "2500"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    return authority(CA).issue("gateway").write(tmp_path_factory.mktemp("tls"), "gateway")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "anybody on the network"),
        ({"tls": True}, "anybody on the network"),
        ({"clients": True}, "in clear"),
        ({"tls_cert": True}, "set both or neither"),
    ],
)
async def test_beyond_loopback_keys_and_tls_are_needed(
    clients_file, certificate, settings, says
) -> None:
    config = exposed(clients_file, certificate, settings)
    gateway = Gateway(config)
    with pytest.raises(ConfigurationError, match=says):
        await gateway.start()
    if "tls_cert" not in settings:
        allowed = Gateway(config.model_copy(update={"allow_insecure": True}))
        await allowed.start()
        await allowed.stop()


async def test_tls(clients_file, certificate) -> None:
    gateway = Gateway(exposed(clients_file, certificate, {"tls": True, "clients": True}))
    await gateway.start()
    assert gateway.base_url.startswith("https://127.0.0.1:")
    context = ssl.create_default_context(cadata=authority(CA).certificate.decode())
    async with httpx.AsyncClient(verify=context) as client:
        response = await client.get(f"{gateway.base_url}/version")
    assert response.status_code == 200
    await gateway.stop()


def exposed(clients_file, certificate, settings) -> GatewayConfig:
    given = {}
    if settings.get("clients"):
        given["clients"] = clients_file
    if settings.get("tls") or settings.get("tls_cert"):
        given["tls_cert"] = certificate[0]
    if settings.get("tls"):
        given["tls_key"] = certificate[1]
    return GatewayConfig(host="0.0.0.0", port=0, **given)
