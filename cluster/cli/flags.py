"""Options that several commands share, and how they become settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.config import Settings, load_settings
from kvstore.core.errors import ConfigurationError

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file; default: ./kvstore.toml if there is one."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any option, e.g. node.host=4GiB. Repeatable."),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Folder or hub id of the model (safetensors).")
]
ConductorOption = Annotated[
    str | None, typer.Option("--conductor", help="Address of the conductor, host:port.")
]


def settings_from(
    config: Path | None, assignments: list[str] | None, named: dict[str, Any]
) -> Settings:
    """Settings with `--set` assignments and named options on top; `named` maps keys like
    "node.host" to values, where None means that the option was not given.

    Raises ConfigurationError for an assignment that is none, and as `load_settings` does.
    """
    flags: dict[str, Any] = {}
    for assignment in assignments or ():
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigurationError(f"--set {assignment}: write KEY=VALUE, e.g. node.host=4GiB")
        _put(flags, key.strip(), value.strip())
    for key, value in named.items():
        if value is not None:
            _put(flags, key, value)
    return load_settings(config, flags)


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigurationError(f"--set {key}: {section} is set to a value already")
    tree[leaf] = value
