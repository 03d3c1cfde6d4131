"""`kvstore demo | serve`: a whole cluster on this host, launched on Ray."""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.flags import ConfigOption, ModelOption, SetOption, settings_from

PANEL = "A whole cluster"


def add_to(app: typer.Typer) -> None:
    for command in (demo, serve):
        app.command(rich_help_panel=PANEL)(command)


def demo(
    model: Annotated[
        str | None,
        typer.Option("--model", help="Folder or hub id of a model; default: a small random one."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="Mooncake-format trace, .jsonl or .jsonl.gz."),
    ] = None,
) -> None:
    """Start a cluster, send it conversations, and show what the cache does.

    Every answer is asked for again without the cache and compared. The last line of the output is
    one JSON object; the exit status is 0 only if all answers are identical and nothing is left.

    Example: [bold]kvstore demo --model ./model --trace conversation_trace.jsonl.gz[/]
    """
    from cluster.demo.run import run_demo

    raise typer.Exit(run_demo(model, trace))


def serve(
    model: ModelOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 = any free one.")] = None,
    prefill_workers: Annotated[int | None, typer.Option(help="Number of prefill workers.")] = None,
    decode_workers: Annotated[int | None, typer.Option(help="Number of decode workers.")] = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
) -> None:
    """Serve a model over HTTP as OpenAI does, until Ctrl-C.

    Example: [bold]kvstore serve --model ./model --port 8000 --set node.host=4GiB[/]
    """
    named = {
        "model": model,
        "gateway.host": host,
        "gateway.port": port,
        "prefill_workers": prefill_workers,
        "decode_workers": decode_workers,
    }
    settings = settings_from(config, assignments, named)

    from rich.console import Console

    from cluster.launch.cluster import LocalCluster
    from cluster.launch.until_signal import run_until_signal

    console = Console(stderr=True)
    cluster = LocalCluster(settings, lambda text: console.print(f"[dim]·[/] {text}"))

    def announce() -> None:
        messages = [{"role": "user", "content": "Hello"}]
        body = json.dumps({"model": cluster.model_name, "messages": messages})
        typer.echo(f"serving on {cluster.base_url}/v1, conductor on {cluster.conductor_address}")
        typer.echo(
            f"curl {cluster.base_url}/v1/chat/completions "
            f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
        )

    asyncio.run(run_until_signal(cluster, announce))
