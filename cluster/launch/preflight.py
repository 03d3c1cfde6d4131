"""What can be checked before any process is started: wrong settings should cost no waiting."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from cluster.config import Settings
from cluster.gateway.config import GatewayConfig
from cluster.gateway.exposure import check_exposure
from cluster.gateway.tenants import load_clients
from kvstore.core.errors import ConfigurationError
from kvstore.node.config import NodeConfig
from kvstore.node.keys import server_keys
from kvstore.transports.security.keys import load_client_keys, load_server_keys
from model_runner.config import WorkerConfig


def check(settings: Settings) -> None:
    """Raises ConfigurationError that names the first setting that cannot work."""
    check_model("prefill", settings.prefill)
    check_model("decode", settings.decode)
    check_folders(settings.node)
    check_keys(settings)
    check_port(settings.gateway)
    for role, count in (("prefill", settings.prefill_workers), ("decode", settings.decode_workers)):
        address = getattr(settings, role).grpc_address
        if count > 1 and not address.endswith(":0"):
            raise ConfigurationError(
                f"{role}.grpc_address {address}: {count} {role} workers cannot share a port; use :0"
            )


def check_model(role: str, config: WorkerConfig) -> None:
    """A path must be a folder with a model in it; anything else may be a hub id."""
    if not config.model:
        raise ConfigurationError(
            f"{role}.model: no model; name a folder or hub id with --model or `model = ...`"
        )
    folder = Path(config.model).expanduser()
    if not folder.is_dir():
        if config.model.startswith((".", "/", "~")) or config.model.count("/") > 1:
            raise ConfigurationError(f"{role}.model: {config.model} is no folder")
        return
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ConfigurationError(
            f"{role}.model: {config.model} must hold config.json and *.safetensors"
        )


def check_folders(config: NodeConfig) -> None:
    _check_writable("node.arena_folder", config.arena_folder)
    if config.disk and config.disk_path is None:
        raise ConfigurationError("node.disk_path: a disk tier needs a folder")
    if config.disk and config.disk_path:
        existing = next(p for p in (config.disk_path, *config.disk_path.parents) if p.exists())
        _check_writable("node.disk_path", existing)


def check_keys(settings: Settings) -> None:
    server_keys(settings.node)
    for section in ("node", "prefill", "decode", "conductor"):
        load_server_keys(getattr(settings, section).security, f"{section}.security")
    for section in ("node", "prefill", "decode", "conductor", "gateway"):
        load_client_keys(getattr(settings, section).credentials, f"{section}.credentials")
    load_clients(settings.gateway.clients)
    check_exposure(settings.gateway)


def _check_writable(option: str, folder: Path) -> None:
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{option}: {folder} is no folder that can be written to")


def check_port(config: GatewayConfig) -> None:
    """Something may still take the port before the gateway does: then it fails at its start."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise ConfigurationError(
                f"gateway.port: cannot listen on {config.host}:{config.port}: {error.strerror}; "
                "choose another port, 0 = any free one"
            ) from error
