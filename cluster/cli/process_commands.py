"""`kvstore node | prefill | decode | conductor | gateway`: one process each, without Ray."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.flags import (
    ConductorOption,
    ConfigOption,
    ModelOption,
    SetOption,
    settings_from,
)
from kvstore.core.errors import ConfigurationError
from model_runner.config import WorkerConfig

if TYPE_CHECKING:
    from cluster.launch.services import Kind, ServiceConfig

PANEL = "One process of a cluster made by hand"


def add_to(app: typer.Typer) -> None:
    for command in (conductor, node, prefill, decode, gateway):
        app.command(rich_help_panel=PANEL)(command)


def conductor(
    listen: Annotated[
        str | None, typer.Option("--listen", help="Address of the gRPC service, host:port.")
    ] = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
) -> None:
    """Run the conductor: the global scheduler that all others register with.

    Example: [bold]kvstore conductor --listen 127.0.0.1:7000[/]
    """
    settings = settings_from(config, assignments, {"conductor.grpc_address": listen})

    _run("conductor", settings.conductor)


def node(
    node_id: Annotated[str | None, typer.Option(help="Name of the node, unique.")] = None,
    host: Annotated[str | None, typer.Option(help="Size of the host tier, e.g. 4GiB.")] = None,
    disk: Annotated[str | None, typer.Option(help="Size of the disk tier, e.g. 50GiB.")] = None,
    disk_path: Annotated[str | None, typer.Option(help="Folder of the disk tier.")] = None,
    zmq: Annotated[
        str | None, typer.Option("--zmq", help="ZeroMQ endpoint of the verbs, ipc:// or tcp://.")
    ] = None,
    conductor: ConductorOption = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
) -> None:
    """Run the store daemon of this host: its host tier and its disk tier.

    Example: [bold]kvstore node --host 4GiB --disk 50GiB --disk-path /var/lib/kvstore
    --zmq tcp://127.0.0.1:7001 --conductor 127.0.0.1:7000[/]
    """
    named = {
        "node.node_id": node_id,
        "node.host": host,
        "node.disk": disk,
        "node.disk_path": disk_path,
        "node.zmq_endpoint": zmq,
        "node.conductor": conductor,
    }
    settings = settings_from(config, assignments, named)

    _run("node", settings.node)


WorkerIdOption = Annotated[str | None, typer.Option(help="Name of the worker, unique.")]
NodeOption = Annotated[
    str | None, typer.Option("--node", help="ZeroMQ endpoint of this host's store node.")
]
NodeIdOption = Annotated[str | None, typer.Option(help="Name of this host's store node.")]


def prefill(
    model: ModelOption = None,
    worker_id: WorkerIdOption = None,
    node: NodeOption = None,
    node_id: NodeIdOption = None,
    conductor: ConductorOption = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
) -> None:
    """Run a prefill worker: it computes prompts and publishes their KV blocks.

    Example: [bold]kvstore prefill --model ./model --node tcp://127.0.0.1:7001 --node-id node-0
    --conductor 127.0.0.1:7000[/]
    """
    named = _worker_flags("prefill", model, worker_id, node, node_id, conductor)
    worker = _with_model(settings_from(config, assignments, named).prefill)

    _run("prefill", worker)


def decode(
    model: ModelOption = None,
    worker_id: WorkerIdOption = None,
    node: NodeOption = None,
    node_id: NodeIdOption = None,
    conductor: ConductorOption = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
) -> None:
    """Run a decode worker: it fetches KV blocks and generates the answers.

    Example: [bold]kvstore decode --model ./model --node tcp://127.0.0.1:7001 --node-id node-0
    --conductor 127.0.0.1:7000[/]
    """
    named = _worker_flags("decode", model, worker_id, node, node_id, conductor)
    worker = _with_model(settings_from(config, assignments, named).decode)

    _run("decode", worker)


def gateway(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 = any free one.")] = None,
    conductor: ConductorOption = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
) -> None:
    """Run the OpenAI-compatible HTTP front.

    Example: [bold]kvstore gateway --port 8000 --conductor 127.0.0.1:7000[/]
    """
    named = {"gateway.host": host, "gateway.port": port, "gateway.conductor": conductor}
    settings = settings_from(config, assignments, named)

    _run("gateway", settings.gateway)


def _worker_flags(
    role: str,
    model: str | None,
    worker_id: str | None,
    node: str | None,
    node_id: str | None,
    conductor: str | None,
) -> dict[str, Any]:
    return {
        f"{role}.model": model,
        f"{role}.worker_id": worker_id,
        f"{role}.node": node,
        f"{role}.node_id": node_id,
        f"{role}.conductor": conductor,
    }


def _with_model(config: WorkerConfig) -> WorkerConfig:
    if not config.model:
        raise ConfigurationError("no model: name a folder or hub id with --model or `model = ...`")
    return config


def _run(kind: Kind, config: ServiceConfig) -> None:
    """Run one service in this process until SIGINT or SIGTERM. It logs to the standard error."""
    from cluster.launch.services import make_service
    from cluster.launch.until_signal import run_until_signal
    from kvstore.observability.logging import setup_logging

    setup_logging(sys.stderr)
    service = make_service(kind, config)

    def announce() -> None:
        addresses = " ".join(f"{key}={value}" for key, value in service.addresses.items())
        typer.echo(f"{kind} ready: {addresses}")

    asyncio.run(run_until_signal(service, announce))
