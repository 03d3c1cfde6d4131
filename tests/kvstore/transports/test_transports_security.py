"""Who gets in over real sockets, as whom, and what the others are told."""

from __future__ import annotations

import asyncio
import os
import stat
from datetime import UTC, datetime, timedelta

import grpc
import pytest
import zmq
import zmq.asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kvstore.core.errors import (
    KVStoreError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from kvstore.testing.certificates import CA, SecureServer, authority
from kvstore.testing.transport_conformance import SERVICE, error_of, match_number
from kvstore.transports.grpc.channel import GrpcChannel
from kvstore.transports.grpc.server import GrpcServer
from kvstore.transports.security.caller import (
    TRUSTED,
    Role,
    authorize_session,
    current_caller,
    require_role,
)
from kvstore.transports.security.keys import NO_CLIENT_KEYS, NO_SERVER_KEYS, ClientKeys, ServerKeys
from kvstore.transports.zmq.channel import ZmqChannel
from kvstore.transports.zmq.frames import MAX_MESSAGE_BYTES
from kvstore.transports.zmq.server import ZmqServer
from kvstore.wire.v1 import node_pb2

TRANSPORTS = ("grpc", "zmq")
PAST = datetime.now(UTC) - timedelta(seconds=1)


class Place:
    """Servers and channels of one test, with a handler that tells its caller."""

    def __init__(self):
        self.parts = []
        self.callers = []

    async def serve(self, transport, keys):
        handlers = {"Match": self._match, "OpenSession": self._open}
        if transport == "grpc":
            server = GrpcServer(
                SERVICE,
                handlers,
                "127.0.0.1:0",
                keys=keys,
                readers={"Write": self._write},
                writers={"Read": self._read},
            )
        else:
            server = ZmqServer(SERVICE, handlers, "tcp://127.0.0.1:0", keys=keys)
        await server.start()
        self.parts.append(server.stop)
        return server

    def connect(self, transport, endpoint, keys):
        if transport == "grpc":
            channel = GrpcChannel(endpoint, SERVICE.full_name, keys=keys)
        else:
            channel = ZmqChannel(endpoint, keys=keys)
        self.parts.append(channel.close)
        return channel

    async def channel(self, transport, server_keys, client_keys):
        server = await self.serve(transport, server_keys)
        return self.connect(transport, server.endpoint, client_keys)

    async def close(self):
        for part in reversed(self.parts):
            await part()

    async def _match(self, request):
        self.callers.append(current_caller())
        return node_pb2.MatchResponse(num_matched=len(request.keys.block_hashes))

    async def _open(self, request):
        tenant = authorize_session(request.tenant, peer=request.peer)
        return node_pb2.OpenSessionResponse(node_id=f"for {tenant}")

    async def _write(self, requests):
        self.callers.append(current_caller())
        return node_pb2.WriteResponse(bytes_written=len([request async for request in requests]))

    async def _read(self, request):
        self.callers.append(current_caller())
        yield node_pb2.ReadResponse(index=7)


@pytest.fixture
async def place():
    place = Place()
    yield place
    await place.close()


@pytest.fixture
def secure():
    return SecureServer()


async def open_session(channel, tenant="", *, peer=False):
    request = node_pb2.OpenSessionRequest(tenant=tenant, peer=peer)
    return await channel.call("OpenSession", request, node_pb2.OpenSessionResponse, deadline_s=20)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_handler_sees_whose_credentials_came_with_each_call(place, secure, transport):
    a, b = secure.identity("a", "tenant-a"), secure.identity("b", "tenant-b")
    server = await place.serve(transport, secure.keys(a, b))
    channels = [place.connect(transport, server.endpoint, who.keys()) for who in (a, b)]
    calls = [match_number(channels[i % 2], i) for i in range(20)]
    assert await asyncio.gather(*calls) == list(range(20))
    seen = sorted(caller.name for caller in place.callers)
    assert seen == ["a"] * 10 + ["b"] * 10
    assert a.entry.caller in place.callers


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_without_credentials_asked_for_callers_are_trusted(place, transport):
    channel = await place.channel(transport, NO_SERVER_KEYS, NO_CLIENT_KEYS)
    await match_number(channel, 1)
    assert place.callers == [TRUSTED]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_expired_credentials_are_told_so(place, secure, transport):
    late = secure.identity("late", expires=PAST)
    channel = await place.channel(transport, secure.keys(late), late.keys())
    with pytest.raises(UnauthenticatedError, match="credentials of late expired at"):
        await match_number(channel, 1)
    assert not place.callers


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_credentials_that_expire_during_a_connection_stop_counting(place, secure, transport):
    now = [datetime(2030, 1, 1, tzinfo=UTC)]
    brief = secure.identity("brief", expires=now[0] + timedelta(minutes=1))
    keys = secure.keys(brief)
    keys.clients._now = lambda: now[0]
    channel = await place.channel(transport, keys, brief.keys())
    assert await match_number(channel, 3) == 3
    now[0] += timedelta(minutes=1)
    with pytest.raises(UnauthenticatedError, match="expired"):
        await match_number(channel, 3)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_unknown_credentials_are_refused_at_once(place, secure, transport):
    known, unknown = secure.identity("known"), secure.identity("unknown")
    channel = await place.channel(transport, secure.keys(known), unknown.keys())
    async with asyncio.timeout(20):
        with pytest.raises(UnauthenticatedError, match=r"token is unknown|refuses this CURVE key"):
            await match_number(channel, 1, deadline_s=100)
    assert not place.callers


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_tenants_and_roles_are_held_to(place, secure, transport):
    tenant_a = secure.identity("a", "tenant-a")
    peer = secure.identity("node-1", None, frozenset({Role.PEER}))
    server = await place.serve(transport, secure.keys(tenant_a, peer))
    client = place.connect(transport, server.endpoint, tenant_a.keys())
    node = place.connect(transport, server.endpoint, peer.keys())

    assert (await open_session(client)).node_id == "for tenant-a", "empty = the caller's own"
    assert (await open_session(client, "tenant-a")).node_id == "for tenant-a"
    with pytest.raises(PermissionDeniedError, match=r"a belongs to tenant 'tenant-a', not 'b'"):
        await open_session(client, "b")
    with pytest.raises(PermissionDeniedError, match="lacks the role 'peer'"):
        await open_session(client, peer=True)
    assert (await open_session(node, "b", peer=True)).node_id == "for b"
    with pytest.raises(PermissionDeniedError, match="lacks the role 'client'"):
        await open_session(node, "b")


def test_the_trusted_caller_may_do_anything():
    assert authorize_session("any", peer=False) == "any"
    assert authorize_session("", peer=True) == ""
    require_role(Role.ADMIN)


# --- gRPC ------------------------------------------------------------------------------------


async def test_grpc_streams_ask_for_tokens_too(place, secure):
    known, unknown = secure.identity("known"), secure.identity("unknown")
    server = await place.serve("grpc", secure.keys(known))

    async def upload(who):
        async def requests():
            yield node_pb2.WriteRequest()

        channel = place.connect("grpc", server.endpoint, who.keys())
        return await channel.upload("Write", requests(), node_pb2.WriteResponse, deadline_s=20)

    async def download(who):
        channel = place.connect("grpc", server.endpoint, who.keys())
        request = node_pb2.ReadRequest()
        stream = channel.download("Read", request, node_pb2.ReadResponse, deadline_s=20)
        return [response.index async for response in stream]

    assert (await upload(known)).bytes_written == 1
    assert await download(known) == [7]
    assert [caller.name for caller in place.callers] == ["known", "known"]
    assert type(await error_of(upload(unknown))) is UnauthenticatedError
    assert type(await error_of(download(unknown))) is UnauthenticatedError
    assert len(place.callers) == 2


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", ""),),
        (("authorization", "Basic dXNlcjpwYXNz"),),
        (("authorization", "Bearer "),),
        (("authorization", "Bearer a"), ("authorization", "Bearer b")),
    ],
)
async def test_a_call_without_one_token_is_unauthenticated(place, secure, metadata):
    server = await place.serve("grpc", secure.keys(secure.identity("known")))
    credentials = grpc.ssl_channel_credentials(authority(CA).certificate)
    async with grpc.aio.secure_channel(server.endpoint, credentials) as channel:
        call = channel.unary_unary(f"/{SERVICE.full_name}/Match")(b"", metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert not place.callers


async def test_health_is_open_and_reflection_is_not(place, secure):
    server = await place.serve("grpc", secure.keys(secure.identity("known")))
    credentials = grpc.ssl_channel_credentials(authority(CA).certificate)
    async with grpc.aio.secure_channel(server.endpoint, credentials) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in stub.ServerReflectionInfo(asked):
                pass
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("case", ["no TLS", "wrong CA", "no certificate", "foreign certificate"])
async def test_grpc_handshakes_that_fail_say_that_certificates_may_be_why(place, secure, case):
    known = secure.identity("known")
    mutual = "client-ca" if "certificate" in case else None
    keys = {
        "no TLS": NO_CLIENT_KEYS,
        "wrong CA": known.keys(ca="other"),
        "no certificate": known.keys(),
        "foreign certificate": known.keys(certificate=authority("other").issue("client")),
    }[case]
    channel = await place.channel("grpc", secure.keys(known, client_ca=mutual), keys)
    error = await error_of(match_number(channel, 1, deadline_s=0.5))
    assert type(error) is UnauthenticatedError, error
    assert "TLS" in str(error)
    assert not place.callers


async def test_mutual_tls_lets_in_whom_its_authority_signed(place, secure):
    known = secure.identity("known")
    shown = known.keys(certificate=authority("client-ca").issue("client"))
    channel = await place.channel("grpc", secure.keys(known, client_ca="client-ca"), shown)
    assert await match_number(channel, 4) == 4


async def test_a_tls_client_of_a_plain_server_fails_by_its_deadline(place, secure):
    channel = await place.channel("grpc", NO_SERVER_KEYS, secure.identity("known").keys())
    assert isinstance(await error_of(match_number(channel, 1, deadline_s=0.5)), KVStoreError)
    assert not place.callers


async def test_a_grpc_message_over_the_limit_is_refused_and_serving_goes_on(place, secure):
    known = secure.identity("known")
    channel = await place.channel("grpc", secure.keys(known), known.keys())
    assert isinstance(await error_of(match_number(channel, MAX_MESSAGE_BYTES + 1)), KVStoreError)
    assert await match_number(channel, 5) == 5
    assert len(place.callers) == 1


# --- ZeroMQ ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["wrong server key", "client without", "server without"])
async def test_a_curve_mismatch_is_named_at_the_deadline(place, secure, case):
    known = secure.identity("known")
    keys = {
        "wrong server key": (secure.keys(known), SecureServer().identity("known").keys()),
        "client without": (secure.keys(known), NO_CLIENT_KEYS),
        "server without": (NO_SERVER_KEYS, known.keys()),
    }[case]
    channel = await place.channel("zmq", *keys)
    error = await error_of(match_number(channel, 1, deadline_s=0.5))
    assert type(error) is UnauthenticatedError
    assert "CURVE" in str(error)
    assert not place.callers


async def test_a_channel_that_was_refused_gets_in_once_its_key_is_listed(place, secure):
    known, late = secure.identity("known"), secure.identity("late")
    server = await place.serve("zmq", secure.keys(known))
    channel = place.connect("zmq", server.endpoint, late.keys())
    assert type(await error_of(match_number(channel, 1))) is UnauthenticatedError
    endpoint = server.endpoint
    await server.stop()
    again = ZmqServer(SERVICE, {"Match": place._match}, endpoint, keys=secure.keys(known, late))
    await again.start()
    place.parts.append(again.stop)
    for _ in range(400):
        (outcome,) = await asyncio.gather(match_number(channel, 1), return_exceptions=True)
        if outcome == 1:
            break
        assert type(outcome) in (UnauthenticatedError, UnavailableError)
        await asyncio.sleep(0.05)
    assert [caller.name for caller in place.callers] == ["late"]


async def test_nobody_there_is_no_matter_of_keys(place, secure):
    known = secure.identity("known")
    server = await place.serve("zmq", secure.keys(known))
    channel = place.connect("zmq", server.endpoint, known.keys())
    await server.stop()
    error = await error_of(match_number(channel, 1, deadline_s=0.3))
    assert type(error) is UnavailableError


async def test_a_frame_over_the_limit_costs_a_curve_client_only_its_connection(place, secure):
    known = secure.identity("known")
    server = await place.serve("zmq", secure.keys(known))
    noisy = place.connect("zmq", server.endpoint, known.keys())
    quiet = place.connect("zmq", server.endpoint, known.keys())
    error = await error_of(match_number(noisy, MAX_MESSAGE_BYTES + 1))
    assert type(error) is UnavailableError
    assert await match_number(quiet, 5) == 5
    assert len(place.callers) == 1


async def test_noise_over_curve_is_answered_or_dropped(place, secure):
    known = secure.identity("known")
    server = await place.serve("zmq", secure.keys(known))
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as raw:
        raw.setsockopt(zmq.LINGER, 0)
        raw.setsockopt(zmq.RCVTIMEO, 10_000)
        known.curve.secure(raw)
        raw.connect(server.endpoint)
        await raw.send_multipart([b"x"])
        await raw.send_multipart([b"12345678", b"Match"])
        assert (await raw.recv_multipart())[:2] == [b"12345678", bytes([13])]
    assert server.num_malformed == 2


async def test_an_ipc_socket_is_for_its_owner_only(place, tmp_path):
    server = ZmqServer(SERVICE, {"Match": place._match}, f"ipc://{tmp_path}/node")
    await server.start()
    place.parts.append(server.stop)
    assert stat.S_IMODE(os.stat(tmp_path / "node").st_mode) == 0o600


async def test_curve_is_for_tcp_and_ipc_needs_none(place, secure, tmp_path):
    keys = secure.keys(secure.identity("known"))
    server = ZmqServer(SERVICE, {"Match": place._match}, f"ipc://{tmp_path}/node", keys=keys)
    await server.start()
    place.parts.append(server.stop)
    channel = place.connect("zmq", server.endpoint, NO_CLIENT_KEYS)
    assert await match_number(channel, 2) == 2
    assert place.callers == [TRUSTED]


def test_secrets_do_not_show_in_reprs(secure):
    known = secure.identity("known")
    shown = repr(known.keys()) + repr(secure.keys(known))
    for secret in (known.token, known.curve.secret_key, secure._secret_key, "PRIVATE KEY"):
        assert secret not in shown
    assert isinstance(known.keys(), ClientKeys)
    assert isinstance(secure.keys(known), ServerKeys)
