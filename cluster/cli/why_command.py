"""`kvstore why`: why a request went where it went, and what it did not find in the cache."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Annotated
from urllib.parse import quote

import typer

from cluster.cli.flags import ConfigOption, SetOption, settings_from
from cluster.config import Settings
from kvstore.core.errors import (
    ConfigurationError,
    KVStoreError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)


def add_to(app: typer.Typer) -> None:
    app.command("why", rich_help_panel="A running cluster")(why)


def why(
    request: Annotated[
        str, typer.Argument(help="Id of an answer (cmpl-..., chatcmpl-...), or its x-request-id.")
    ],
    gateway: Annotated[
        str | None,
        typer.Option(help="Base URL of the gateway; default: from the settings."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait.", min=0.1)] = 5.0,
    config: ConfigOption = None,
    assignments: SetOption = None,
) -> None:
    """Show the decision on one of the last requests with its terms, and the reason of each miss.

    Example: [bold]kvstore why chatcmpl-2ede6595698a778cb85b9780 --gateway http://127.0.0.1:8000[/]
    """
    settings = settings_from(config, assignments, {})
    accept = "application/json" if as_json else "text/plain"
    typer.echo(_fetch(settings, gateway or _configured(settings), request, accept, timeout_s))


def _configured(settings: Settings) -> str:
    config = settings.gateway
    if not config.port:
        raise ConfigurationError("no port of the gateway: give its URL with --gateway")
    scheme = "http" if config.tls_cert is None else "https"
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{scheme}://{host}:{config.port}"


def _fetch(settings: Settings, base_url: str, request: str, accept: str, timeout_s: float) -> str:
    """Shows the gateway the cluster's own token, if there is one: a gateway that asks for keys
    knows it by the same file of clients."""
    from kvstore.transports.security.keys import load_client_keys

    base_url = base_url.rstrip("/").removesuffix("/v1")
    if not base_url.startswith(("http://", "https://")):
        raise ConfigurationError(f"--gateway {base_url}: write http://HOST:PORT")
    token = load_client_keys(settings.gateway.credentials, "gateway.credentials").token
    headers = {"accept": accept} | ({"authorization": f"Bearer {token}"} if token else {})
    url = f"{base_url}/v1/explain/{quote(request, safe='')}"
    asked = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme was checked
    trusted = ssl.create_default_context(cafile=settings.gateway.credentials.ca)
    try:
        with urllib.request.urlopen(asked, timeout=timeout_s, context=trusted) as response:  # noqa: S310
            return str(response.read().decode()).rstrip("\n")
    except urllib.error.HTTPError as error:
        raise _error(error.code, error.read()) from error
    except (OSError, ValueError, HTTPException) as error:
        raise UnavailableError(
            f"no gateway answers at {base_url}: {error}; give its URL with --gateway"
        ) from error


def _error(status: int, body: bytes) -> KVStoreError:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the gateway answered {status}; is it one of this version?"
    kinds = {401: UnauthenticatedError, 403: PermissionDeniedError, 404: NotFoundError}
    return kinds.get(status, UnavailableError)(message)
