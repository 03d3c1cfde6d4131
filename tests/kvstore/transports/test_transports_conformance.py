"""The three transports run one suite."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping

import pytest

from kvstore.core.errors import ConfigurationError
from kvstore.testing.certificates import SecureServer
from kvstore.testing.transport_conformance import (
    SERVICE,
    TransportConformance,
    double,
    match_number,
)
from kvstore.transports.base import Channel, Handler, Server
from kvstore.transports.grpc.channel import GrpcChannel
from kvstore.transports.grpc.server import GrpcServer
from kvstore.transports.inproc import InprocChannel, InprocServer
from kvstore.transports.zmq.channel import ZmqChannel
from kvstore.transports.zmq.server import ZmqServer


class TestZmqTcp(TransportConformance):
    def make_server(self, handlers: Mapping[str, Handler]) -> Server:
        return ZmqServer(SERVICE, handlers, "tcp://127.0.0.1:0")

    def make_channel(self, server: Server, max_in_flight: int) -> Channel:
        return ZmqChannel(server.endpoint, max_in_flight=max_in_flight)


class TestZmqIpc(TestZmqTcp):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory):
        self.endpoint = f"ipc://{tmp_path_factory.mktemp('ipc')}/node"

    def make_server(self, handlers: Mapping[str, Handler]) -> Server:
        return ZmqServer(SERVICE, handlers, self.endpoint)


class TestGrpc(TransportConformance):
    def make_server(self, handlers: Mapping[str, Handler]) -> Server:
        return GrpcServer(SERVICE, handlers, "127.0.0.1:0")

    def make_channel(self, server: Server, max_in_flight: int) -> Channel:
        return GrpcChannel(server.endpoint, SERVICE.full_name, max_in_flight=max_in_flight)


class TestZmqCurve(TransportConformance):
    def make_server(self, handlers: Mapping[str, Handler]) -> Server:
        secure = SecureServer()
        self.identity = secure.identity("client")
        keys = secure.keys(self.identity)
        return ZmqServer(SERVICE, handlers, "tcp://127.0.0.1:0", keys=keys)

    def make_channel(self, server: Server, max_in_flight: int) -> Channel:
        return ZmqChannel(server.endpoint, keys=self.identity.keys(), max_in_flight=max_in_flight)


class TestGrpcTlsToken(TransportConformance):
    def make_server(self, handlers: Mapping[str, Handler]) -> Server:
        secure = SecureServer()
        self.identity = secure.identity("client")
        return GrpcServer(SERVICE, handlers, "127.0.0.1:0", keys=secure.keys(self.identity))

    def make_channel(self, server: Server, max_in_flight: int) -> Channel:
        keys = self.identity.keys()
        return GrpcChannel(
            server.endpoint, SERVICE.full_name, keys=keys, max_in_flight=max_in_flight
        )


class TestInproc(TransportConformance):
    def make_server(self, handlers: Mapping[str, Handler]) -> Server:
        return InprocServer(handlers)

    def make_channel(self, server: Server, max_in_flight: int) -> Channel:
        assert isinstance(server, InprocServer)
        return InprocChannel(server, max_in_flight=max_in_flight)


def test_inproc_serves_callers_on_other_loops():
    served_on = []

    async def handler(request):
        served_on.append(threading.current_thread())
        return await double(request)

    async def call(server):
        return await match_number(InprocChannel(server), 4)

    async def main():
        server = InprocServer({"Match": handler})
        await server.start()
        return await asyncio.to_thread(asyncio.run, call(server))

    assert asyncio.run(main()) == 8
    assert served_on == [threading.main_thread()]


@pytest.mark.parametrize("family", [TestZmqTcp, TestGrpc, TestZmqIpc])
async def test_a_taken_address_is_a_configuration_error(family, tmp_path):
    endpoint = f"ipc://{tmp_path}/node" if family is TestZmqIpc else None
    suite = family()
    suite.endpoint = endpoint
    first = suite.make_server({"Match": double})
    await first.start()
    taken = endpoint or first.endpoint
    second = GrpcServer(SERVICE, {}, taken) if family is TestGrpc else ZmqServer(SERVICE, {}, taken)
    with pytest.raises(ConfigurationError, match="cannot listen on"):
        await second.start()
    await second.stop()
    await first.stop()


@pytest.mark.parametrize("endpoint", ["nowhere", "tcp://", "udp://1.2.3.4:5", "tcp://host"])
async def test_an_endpoint_that_makes_no_sense_is_a_configuration_error(endpoint):
    with pytest.raises(ConfigurationError, match="cannot use endpoint"):
        ZmqChannel(endpoint)
