"""Settings and files of credentials: what is wrong is refused early, in one line that names it."""

from __future__ import annotations

import os

import pytest

from kvstore.core.errors import ConfigurationError, UnauthenticatedError
from kvstore.testing.certificates import CA, SecureServer, authority
from kvstore.transports.advertise import own_address, reachable
from kvstore.transports.security.caller import Role
from kvstore.transports.security.clients import ClientEntry, Clients, token_digest
from kvstore.transports.security.config import ClientSecurity, ServerSecurity
from kvstore.transports.security.curve import make_key_pair
from kvstore.transports.security.exposure import check_grpc, check_zmq
from kvstore.transports.security.files import write_new
from kvstore.transports.security.keys import (
    NO_CLIENT_KEYS,
    NO_SERVER_KEYS,
    ServerKeys,
    load_client_keys,
    load_server_keys,
)

DIGEST = token_digest("secret").hex()


@pytest.fixture
def folder(tmp_path):
    """A file for every setting."""
    authority(CA).issue("server").write(tmp_path, "server")
    pair = make_key_pair()
    write_new(tmp_path / "ca.crt", authority(CA).certificate.decode(), 0o644)
    write_new(tmp_path / "curve.secret", f"{pair.secret_key}\n", 0o600)
    write_new(tmp_path / "curve.public", f"{pair.public_key}\n", 0o644)
    write_new(tmp_path / "token", "a-token\n", 0o600)
    entry = f'[[client]]\nname = "a"\ntenant = ""\ntoken_sha256 = "{DIGEST}"\n'
    write_new(tmp_path / "clients.toml", entry, 0o644)
    return tmp_path


def server(folder, **changes):
    values = {
        "tls_cert": folder / "server.crt",
        "tls_key": folder / "server.key",
        "tls_client_ca": folder / "ca.crt",
        "clients": folder / "clients.toml",
        "curve_secret_key": folder / "curve.secret",
    }
    return ServerSecurity(**values | changes)


def client(folder, **changes):
    values = {
        "ca": folder / "ca.crt",
        "cert": folder / "server.crt",
        "key": folder / "server.key",
        "token_file": folder / "token",
        "curve_server_key": folder / "curve.public",
        "curve_secret_key": folder / "curve.secret",
    }
    return ClientSecurity(**values | changes)


def test_everything_set_is_read(folder):
    keys = load_server_keys(server(folder))
    assert keys.tls.client_ca == authority(CA).certificate
    assert keys.clients.caller_of_token("secret").name == "a"
    assert keys.curve.clients is keys.clients
    shown = load_client_keys(client(folder))
    assert shown.token == "a-token"
    assert shown.curve.public_key == (folder / "curve.public").read_text().strip()
    assert shown.tls.certificate is not None


def test_nothing_set_is_open():
    assert load_server_keys(ServerSecurity()) == NO_SERVER_KEYS
    assert load_client_keys(ClientSecurity()) == NO_CLIENT_KEYS


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tls_key": None}, "node.security.tls_cert needs node.security.tls_key"),
        ({"tls_cert": None}, "node.security.tls_key needs node.security.tls_cert"),
        ({"clients": None}, "node.security.curve_secret_key needs node.security.clients"),
    ],
)
def test_a_server_setting_without_the_one_it_needs(folder, changes, named):
    with pytest.raises(ConfigurationError, match=named):
        load_server_keys(server(folder, **changes), "node.security")


def test_clients_need_something_that_asks_for_them(folder):
    with pytest.raises(ConfigurationError, match=r"security\.clients needs security\.tls_cert"):
        load_server_keys(ServerSecurity(clients=folder / "clients.toml"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"key": None}, "security.cert needs security.key"),
        ({"cert": None}, "security.key needs security.cert"),
        ({"ca": None, "cert": None, "key": None}, "token must not travel in clear"),
        ({"ca": None}, "security.cert needs security.ca"),
        ({"curve_secret_key": None}, "curve_server_key needs security.curve_secret_key"),
        ({"curve_server_key": None}, "curve_secret_key needs security.curve_server_key"),
    ],
)
def test_a_client_setting_without_the_one_it_needs(folder, changes, named):
    with pytest.raises(ConfigurationError, match=named):
        load_client_keys(client(folder, **changes))


@pytest.mark.parametrize("setting", ["tls_key", "curve_secret_key"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_secrets_that_others_can_open_are_refused(folder, setting, mode):
    config = server(folder)
    os.chmod(getattr(config, setting), mode)
    with pytest.raises(
        ConfigurationError, match=rf"security.{setting}.*mode {mode:04o}.*chmod 600"
    ):
        load_server_keys(config)


@pytest.mark.parametrize("setting", ["key", "token_file", "curve_secret_key"])
def test_a_clients_secrets_that_others_can_open_are_refused(folder, setting):
    config = client(folder)
    os.chmod(getattr(config, setting), 0o644)
    with pytest.raises(ConfigurationError, match=rf"security.{setting}.*mode 0644.*chmod 600"):
        load_client_keys(config)


@pytest.mark.parametrize("setting", ["tls_cert", "tls_client_ca", "clients"])
def test_what_decides_who_comes_in_must_not_be_for_others_to_change(folder, setting):
    config = server(folder)
    os.chmod(getattr(config, setting), 0o664)
    with pytest.raises(ConfigurationError, match=rf"security.{setting}.*others can change it"):
        load_server_keys(config)


@pytest.mark.parametrize("setting", list(ServerSecurity.model_fields))
def test_a_server_file_that_is_missing_or_holds_something_else(folder, setting):
    with pytest.raises(
        ConfigurationError, match=rf"security.{setting}: cannot read .*No such file"
    ):
        load_server_keys(server(folder, **{setting: folder / "nowhere"}))
    write_new(folder / "other", "hello = 1\n", 0o600)
    with pytest.raises(ConfigurationError, match=rf"security.{setting}: .*other"):
        load_server_keys(server(folder, **{setting: folder / "other"}))


@pytest.mark.parametrize("setting", list(ClientSecurity.model_fields))
def test_a_client_file_that_is_missing_or_holds_something_else(folder, setting):
    with pytest.raises(
        ConfigurationError, match=rf"security.{setting}: cannot read .*No such file"
    ):
        load_client_keys(client(folder, **{setting: folder / "nowhere"}))
    write_new(folder / "other", "two words\n", 0o600)
    with pytest.raises(ConfigurationError, match=rf"security.{setting}: .*other"):
        load_client_keys(client(folder, **{setting: folder / "other"}))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[[client]", "not valid TOML"),
        ("[[user]]", "unknown key 'user'"),
        ('[[client]]\nname = "a"\ntenant = ""', "give token_sha256, curve_public_key or both"),
        (f'[[client]]\nname = "a"\ntoken_sha256 = "{DIGEST}"', "a client needs a tenant"),
        (f'[[client]]\nname = ""\ntenant = ""\ntoken_sha256 = "{DIGEST}"', "0.name"),
        ('[[client]]\nname = "a"\ntenant = ""\ntoken_sha256 = "abc"', "0.token_sha256"),
        (f'[[client]]\nname = "a"\ntoken_sha256 = "{DIGEST}"\nroles = ["root"]', "0.roles"),
        (
            f'[[client]]\nname = "a"\ntenant = ""\ntoken_sha256 = "{DIGEST}"\n'
            "expires = 2030-01-01T00:00:00",
            "0.expires",
        ),
        (f'[[client]]\nname = "a"\ntenant = ""\ntoken_sha256 = "{DIGEST}"\n' * 2, "same token_sha"),
    ],
)
def test_a_list_of_clients_that_cannot_be_used(tmp_path, text, named):
    path = tmp_path / "clients.toml"
    write_new(path, text, 0o600)
    with pytest.raises(ConfigurationError, match=named) as raised:
        Clients.load("security.clients", path)
    assert "\n" not in str(raised.value)


def test_a_token_must_match_whole():
    clients = Clients([ClientEntry(name="a", tenant="", token_sha256=DIGEST)])
    assert clients.caller_of_token("secret").roles == {Role.CLIENT}
    for wrong in ("", "secre", "secret ", "Secret", DIGEST, "päß"):
        with pytest.raises(UnauthenticatedError, match="token is unknown"):
            clients.caller_of_token(wrong)


def test_keys_are_not_written_over(tmp_path):
    write_new(tmp_path / "key", "first", 0o600)
    with pytest.raises(ConfigurationError, match="is there already"):
        write_new(tmp_path / "key", "second", 0o600)
    assert (tmp_path / "key").read_text() == "first"


SECURE = SecureServer()
FULL = SECURE.keys(SECURE.identity("a"))
MUTUAL_ONLY = ServerKeys(SECURE.keys(client_ca="x").tls)
TLS_ONLY = ServerKeys(FULL.tls)
CURVE_ONLY = ServerKeys(None, FULL.curve, FULL.clients)
TOKENS_ONLY = ServerKeys(FULL.tls, None, FULL.clients)


@pytest.mark.parametrize(
    ("address", "keys", "allow_insecure", "refusal"),
    [
        ("127.0.0.1:0", NO_SERVER_KEYS, False, None),
        ("[::1]:0", NO_SERVER_KEYS, False, None),
        ("localhost:0", NO_SERVER_KEYS, False, None),
        ("unix:/tmp/x", CURVE_ONLY, False, None),
        ("0.0.0.0:0", NO_SERVER_KEYS, False, "anybody on the network"),
        ("[::]:0", NO_SERVER_KEYS, False, "anybody on the network"),
        (":7000", NO_SERVER_KEYS, False, "anybody on the network"),
        ("host.example:1", NO_SERVER_KEYS, False, "anybody on the network"),
        ("0.0.0.0:0", NO_SERVER_KEYS, True, None),
        ("0.0.0.0:0", TLS_ONLY, False, "anybody on the network"),
        ("0.0.0.0:0", MUTUAL_ONLY, False, None),
        ("0.0.0.0:0", FULL, False, None),
        ("127.0.0.1:0", CURVE_ONLY, False, "tokens would travel in clear"),
        ("127.0.0.1:0", CURVE_ONLY, True, "tokens would travel in clear"),
    ],
)
def test_where_grpc_may_listen(address, keys, allow_insecure, refusal):
    if refusal is None:
        check_grpc("x", address, keys, allow_insecure=allow_insecure)
        return
    with pytest.raises(ConfigurationError, match=refusal) as raised:
        check_grpc("node.grpc_address", address, keys, allow_insecure=allow_insecure)
    assert "node.grpc_address" in str(raised.value)


@pytest.mark.parametrize(
    ("endpoint", "keys", "allow_insecure", "refusal"),
    [
        ("tcp://127.0.0.1:0", NO_SERVER_KEYS, False, None),
        ("ipc:///tmp/x", TOKENS_ONLY, False, None),
        ("ipc://@x", NO_SERVER_KEYS, False, "abstract"),
        ("tcp://*:0", NO_SERVER_KEYS, False, "anybody on the network"),
        ("tcp://0.0.0.0:0", NO_SERVER_KEYS, False, "anybody on the network"),
        ("tcp://eth0:0", NO_SERVER_KEYS, False, "anybody on the network"),
        ("tcp://*:0", NO_SERVER_KEYS, True, None),
        ("tcp://*:0", FULL, False, None),
        ("tcp://127.0.0.1:0", TOKENS_ONLY, False, "would stand open"),
        ("tcp://127.0.0.1:0", TOKENS_ONLY, True, "would stand open"),
    ],
)
def test_where_zeromq_may_listen(endpoint, keys, allow_insecure, refusal):
    if refusal is None:
        check_zmq("x", endpoint, keys, allow_insecure=allow_insecure)
        return
    with pytest.raises(ConfigurationError, match=refusal):
        check_zmq("node.zmq_endpoint", endpoint, keys, allow_insecure=allow_insecure)


def test_a_wildcard_is_advertised_as_an_address_that_can_be_reached():
    assert reachable("tcp://0.0.0.0:71", "kv-1") == "tcp://kv-1:71"
    assert reachable("0.0.0.0:71", "kv-1") == "kv-1:71"
    assert reachable("[::]:71", "kv-1") == "kv-1:71"
    assert reachable("tcp://*:71", None) == f"tcp://{own_address()}:71"
    for fixed in ("tcp://10.0.0.1:71", "127.0.0.1:71", "ipc:///run/node", ""):
        assert reachable(fixed, "kv-1") == fixed
