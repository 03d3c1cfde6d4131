"""`kvstore demo | serve`: a whole cluster on this host, launched on Ray."""

from __future__ import annotations

import asyncio
import json
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.flags import ConfigOption, SetOption, settings_from

if TYPE_CHECKING:
    from cluster.config import Settings

PANEL = "A whole cluster"

AnyModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Folder or hub id of a model; default: a small random one."),
]


def add_to(app: typer.Typer) -> None:
    for command in (demo, serve):
        app.command(rich_help_panel=PANEL)(command)


def demo(
    model: AnyModelOption = None,
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
    model: AnyModelOption = None,
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

    console = Console(stderr=True)

    def progress(text: str) -> None:
        console.print(f"[dim]·[/] {text}")

    if settings.prefill.model and settings.decode.model:
        _serve(settings, progress)
        return

    from cluster.demo.model import build_model

    with tempfile.TemporaryDirectory(prefix="kvstore-serve-") as folder:
        progress("no model named: making a small one of random weights, which answers nonsense")
        named["model"] = str(build_model(Path(folder, "demo-model")))
        _serve(settings_from(config, assignments, named), progress)


def _serve(settings: Settings, progress: Callable[[str], None]) -> None:
    from cluster.launch.cluster import LocalCluster
    from cluster.launch.until_signal import run_until_signal

    cluster = LocalCluster(settings, progress)

    def announce() -> None:
        messages = [{"role": "user", "content": "Hello"}]
        body = json.dumps({"model": cluster.model_name, "messages": messages})
        typer.echo(f"serving on {cluster.base_url}/v1, conductor on {cluster.conductor_address}")
        typer.echo(
            f"curl {cluster.base_url}/v1/chat/completions "
            f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
        )

    asyncio.run(run_until_signal(cluster, announce))
