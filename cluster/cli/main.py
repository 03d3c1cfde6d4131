"""The `kvstore` command. Heavy modules are imported inside commands, so that help is quick."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from cluster.cli import (
    bench_command,
    cluster_commands,
    inspect_command,
    process_commands,
    security_commands,
    simulate_command,
    why_command,
)
from kvstore.core.errors import KVStoreError

app = typer.Typer(
    name="kvstore",
    help="A distributed KV-cache store for LLM serving, with the scheduler that makes it pay.",
    epilog="Start with [bold]kvstore demo[/]. All options: docs/configuration.md.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
cluster_commands.add_to(app)
process_commands.add_to(app)
inspect_command.add_to(app)
bench_command.add_to(app)
security_commands.add_to(app)
simulate_command.add_to(app)
why_command.add_to(app)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"kvstore {version('open-kvstore')}")
        raise typer.Exit


@app.callback()
def _kvstore(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options of the command itself."""


def run() -> None:
    """Entry point of the console script: operating errors become one line and exit status 1."""
    # gRPC would print what it raises as well. Read when it is first imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        app()
    except (KVStoreError, OSError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        typer.echo(f"error: {message}", err=True)
        sys.exit(1)
