"""`kvstore inspect`: who is there, and how full everything is."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from cluster.cli.flags import ConfigOption, SetOption, settings_from
from cluster.config import Settings
from kvstore.core.errors import ConfigurationError


def add_to(app: typer.Typer) -> None:
    app.command("inspect", rich_help_panel="A running cluster")(inspect)


def inspect(
    address: Annotated[
        str | None,
        typer.Argument(help="Address of the conductor, host:port; default: from the settings."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait.", min=0.1)] = 5.0,
    config: ConfigOption = None,
    assignments: SetOption = None,
) -> None:
    """Show members, load, tiers and the index of a running cluster.

    Example: [bold]kvstore inspect 127.0.0.1:7000 --json[/]
    """
    settings = settings_from(config, assignments, {})
    conductor = address or _configured_address(settings)

    from cluster.cli.cluster_view import fetch_view, print_view
    from kvstore.transports.security.keys import load_client_keys

    keys = load_client_keys(settings.gateway.credentials, "gateway.credentials")
    view = asyncio.run(fetch_view(conductor, timeout_s, keys))
    print_view(view, as_json=as_json)


def _configured_address(settings: Settings) -> str:
    for address in (settings.gateway.conductor, settings.conductor.grpc_address):
        if not address.endswith(":0"):
            return address
    raise ConfigurationError(
        "no conductor address: give it as argument, e.g. kvstore inspect 127.0.0.1:7000"
    )
