"""`kvstore token | keys`: credentials for servers and clients. See docs/security.md."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from kvstore.core.errors import ConfigurationError
from kvstore.transports.security.caller import Role
from kvstore.transports.security.clients import token_digest
from kvstore.transports.security.curve import make_key_pair
from kvstore.transports.security.files import write_new

PANEL = "Credentials"
TOKEN_BYTES = 32

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def add_to(app: typer.Typer) -> None:
    for command in (token, keys):
        app.command(rich_help_panel=PANEL)(command)


def token(
    name: Annotated[str, typer.Option(help="Whose token this is, for messages and logs.")],
    tenant: Annotated[
        str | None,
        typer.Option(help='Tenant that it acts for; "" = the default one. Left out: any tenant.'),
    ] = None,
    role: Annotated[
        list[Role] | None, typer.Option(help="What it may do; repeatable. Default: client.")
    ] = None,
    ttl: Annotated[
        str | None, typer.Option(help="How long it counts: 30d, 12h... Left out: for ever.")
    ] = None,
    curve_key: Annotated[
        Path | None, typer.Option(help="Public CURVE key of the same client (NAME.public).")
    ] = None,
) -> None:
    """Make a bearer token. It is printed once, with the entry for the servers' list of clients.

    Example: [bold]kvstore token --name team-a --tenant team-a --ttl 30d[/]
    """
    roles = role or [Role.CLIENT]
    if tenant is None and Role.CLIENT in roles:
        raise ConfigurationError('--tenant: a client needs a tenant; "" is the default one')
    made = secrets.token_urlsafe(TOKEN_BYTES)
    entry = [f"name = {_quoted(name)}", f'token_sha256 = "{token_digest(made).hex()}"']
    if curve_key is not None:
        entry.append(f"curve_public_key = {_quoted(curve_key.read_text().strip())}")
    if tenant is not None:
        entry.append(f"tenant = {_quoted(tenant)}")
    entry.append(f"roles = [{', '.join(_quoted(each.value) for each in roles)}]")
    if ttl is not None:
        expires = datetime.now(UTC) + _duration(ttl)
        entry.append(f"expires = {expires.strftime('%Y-%m-%dT%H:%M:%SZ')}")
    typer.echo("# The token; write it to a file of mode 0600, for `token_file`:", err=True)
    typer.echo(made)
    typer.echo("# The entry; append it to the file that `security.clients` names:", err=True)
    typer.echo("\n".join(["[[client]]", *entry]))


def keys(
    folder: Annotated[Path, typer.Argument(help="Where the key files go; made if missing.")],
    name: Annotated[
        list[str] | None,
        typer.Option(help="Name of a key pair; repeatable. Default: server and client."),
    ] = None,
) -> None:
    """Make CURVE key pairs for ZeroMQ: NAME.secret (mode 0600) and NAME.public.

    Example: [bold]kvstore keys /etc/kvstore/keys --name server --name worker-1[/]
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for each in name or ["server", "client"]:
        pair = make_key_pair()
        write_new(folder / f"{each}.secret", f"{pair.secret_key}\n", 0o600)
        write_new(folder / f"{each}.public", f"{pair.public_key}\n", 0o644)
        typer.echo(f"{folder / each}.public: {pair.public_key}")


def _duration(text: str) -> timedelta:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    if match is None:
        raise ConfigurationError(f"--ttl {text}: write a number with s, m, h or d, such as 30d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _quoted(text: str) -> str:
    """A TOML string. A literal one takes every character of Z85 as it is."""
    if "'" in text or not text.isprintable():
        raise ConfigurationError(f"{text!r}: leave out quotes and characters that do not print")
    return f"'{text}'"
