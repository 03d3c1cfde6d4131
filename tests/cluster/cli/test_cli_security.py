"""`kvstore token` and `kvstore keys` make what servers and clients then read."""

from __future__ import annotations

import os
import stat

import pytest
from typer.testing import CliRunner

from cluster.cli.main import app
from kvstore.core.errors import ConfigurationError, UnauthenticatedError
from kvstore.transports.security.caller import Role
from kvstore.transports.security.clients import Clients
from kvstore.transports.security.config import ClientSecurity, ServerSecurity
from kvstore.transports.security.files import write_new
from kvstore.transports.security.keys import load_client_keys, load_server_keys


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def listed(tmp_path, printed):
    token, *entry = printed.splitlines()
    path = tmp_path / "clients.toml"
    write_new(path, "\n".join(entry), 0o644)
    return token, Clients.load("clients", path)


def test_a_token_is_known_by_the_entry_printed_with_it(tmp_path):
    run("keys", tmp_path / "keys", "--name", "server", "--name", "a")
    public = tmp_path / "keys" / "a.public"
    made = run("token", "--name", "a", "--tenant", "team-a", "--ttl", "30d", "--curve-key", public)
    token, clients = listed(tmp_path, made.stdout)
    caller = clients.caller_of_token(token)
    assert (caller.name, caller.tenant, caller.roles) == ("a", "team-a", {Role.CLIENT})
    assert clients.caller_of_key(public.read_text().strip()) == caller
    with pytest.raises(UnauthenticatedError):
        clients.caller_of_token(token[:-1])


def test_roles_and_any_tenant(tmp_path):
    made = run("token", "--name", "node", "--role", "peer", "--role", "admin")
    token, clients = listed(tmp_path, made.stdout)
    caller = clients.caller_of_token(token)
    assert (caller.tenant, caller.roles) == (None, {Role.PEER, Role.ADMIN})


@pytest.mark.parametrize(
    "arguments",
    [
        ("--name", "a"),
        ("--name", "a", "--tenant", "", "--ttl", "soon"),
        ("--name", "a", "--tenant", "", "--ttl", "0d"),
        ("--name", "it's", "--tenant", ""),
        ("--name", "two\nlines", "--tenant", ""),
    ],
)
def test_what_cannot_be_listed_is_refused(arguments):
    with pytest.raises(ConfigurationError):
        run("token", *arguments)


def test_key_files_are_used_as_they_are(tmp_path):
    folder = tmp_path / "keys"
    run("keys", folder)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes.pop("server.secret") == modes.pop("client.secret") == 0o600
    assert set(modes) == {"server.public", "client.public"}
    clients = tmp_path / "clients.toml"
    write_new(clients, "", 0o644)
    config = ServerSecurity(clients=clients, curve_secret_key=folder / "server.secret")
    assert load_server_keys(config).curve is not None
    keys = load_client_keys(
        ClientSecurity(
            curve_server_key=folder / "server.public", curve_secret_key=folder / "client.secret"
        )
    )
    assert keys.curve.public_key == (folder / "client.public").read_text().strip()
    with pytest.raises(ConfigurationError, match="is there already"):
        run("keys", folder)
