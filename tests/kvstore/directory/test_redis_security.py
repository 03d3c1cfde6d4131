"""Passwords and TLS."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

import pytest

from kvstore.core.errors import ConfigurationError, DeadlineExceededError, UnavailableError
from kvstore.directory.redis_connection import RedisConnection
from kvstore.directory.redis_view import RedisView
from kvstore.node.config import NodeConfig
from kvstore.testing.fake_node import FakeNode
from kvstore.testing.redis_server import PROGRAM, RedisServer
from kvstore.testing.view_conformance import until

SECRET = "hush-hush"

needs_redis = pytest.mark.skipif(
    PROGRAM is None, reason="redis-server is missing: sudo apt-get install redis-server"
)


async def ping(url: str) -> object:
    connection = RedisConnection(url)
    try:
        (answer,) = await connection.pipeline([["PING"]], deadline_s=10)
        return answer
    finally:
        await connection.close()


@needs_redis
async def test_a_password_opens_and_is_never_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with RedisServer(tmp_path, arguments=["--requirepass", SECRET]) as redis:
        address = f"127.0.0.1:{redis.port}/0"
        assert await ping(f"redis://:{SECRET}@{address}") is True
        with pytest.raises(UnavailableError) as missing:
            await ping(f"redis://{address}")
        with pytest.raises(UnavailableError) as wrong:
            await ping(f"redis://:not-{SECRET}@{address}")
        view = RedisView(f"redis://somebody:not-{SECRET}@{address}")
        node = FakeNode("a", 1, "tcp://127.0.0.1:0", view)
        await node.start()
        await until(lambda: "going on with local blocks only" in caplog.text)
        await node.stop()
    told = f"{missing.value} {wrong.value} {view!r} {caplog.text}"
    assert address in told
    assert SECRET not in told


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{SECRET}@host:6379/0",
        f"redis://:{SECRET}@:6379/0",
        f"redis://:{SECRET}@host:port/0",
        f"redis://:{SECRET}@host:6379/first",
        f"redis://:{SECRET}@host:6379/0?decode_responses=yes",
        f":{SECRET}@host",
        f"redis://:{SECRET}@[::1",
    ],
)
def test_an_address_that_is_none_is_refused_without_telling_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"node\.directory") as refused:
        RedisView(url)
    assert SECRET not in f"{refused.value} {refused.value.__cause__} {refused.value.__context__}"


def test_the_settings_do_not_show_it() -> None:
    assert SECRET not in repr(NodeConfig(directory=f"redis://:{SECRET}@host"))


@needs_redis
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
async def test_tls_checks_the_server(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    arguments = ["--tls-auth-clients", "no"]
    for option, name in (("cert", "cert.pem"), ("key", "key.pem"), ("ca-cert", "cert.pem")):
        arguments += [f"--tls-{option}-file", str(tmp_path / name)]
    with RedisServer(tmp_path, arguments=arguments, port_option="--tls-port") as redis:
        address = f"127.0.0.1:{redis.port}/0"
        trusted = f"rediss://{address}?ssl_ca_certs={tmp_path / 'cert.pem'}"
        assert await ping(trusted) is True
        with pytest.raises(UnavailableError, match="certificate"):
            await ping(f"rediss://{address}")
        with pytest.raises((UnavailableError, DeadlineExceededError)):
            await ping(f"redis://{address}")


def make_certificate(folder: Path) -> None:
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(["openssl", "req", *kind, *files, *subject], check=True, capture_output=True)
