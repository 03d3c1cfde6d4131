"""All settings as one frozen tree, parsed once and passed down.

Only this module reads the environment and the configuration file. Later sources win:

    defaults < TOML file (`--config`, else ./kvstore.toml) < environment (KVSTORE_...) < flags
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from cluster.conductor.config import ConductorConfig
from cluster.gateway.config import GatewayConfig
from kvstore.core.errors import ConfigurationError
from kvstore.node.config import NodeConfig
from model_runner.config import WorkerConfig

DEFAULT_FILE = Path("kvstore.toml")
ENV_PREFIX = "KVSTORE_"
ENV_DELIMITER = "__"

# In place of pydantic's words, where those do not say what to write.
EXPECTED = {
    "byte_size": "write a size such as 512MiB or 4GiB",
    "model_type": "this is a section: write a table of options",
}


class Settings(BaseSettings):
    """Everything a cluster is made of: one section per process kind, and what they share.

    Constructing it reads nothing but the arguments; `load_settings` reads file and environment.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
        env_ignore_empty=True,
    )

    model: str = Field(
        "", description="Folder or hub id of the model, for workers that do not name their own."
    )
    prefill_workers: int = Field(1, ge=0, description="Prefill workers that `serve` starts.")
    decode_workers: int = Field(1, ge=1, description="Decode workers that `serve` starts.")
    ray_address: str | None = Field(
        None, description="Address of a running Ray cluster; none = a private one on this host."
    )
    node: NodeConfig = NodeConfig()
    prefill: WorkerConfig = WorkerConfig(model="", worker_id="prefill-0")
    decode: WorkerConfig = WorkerConfig(model="", worker_id="decode-0")
    conductor: ConductorConfig = ConductorConfig()
    gateway: GatewayConfig = GatewayConfig()

    @model_validator(mode="before")
    @classmethod
    def _complete_workers(cls, data: dict[str, Any]) -> dict[str, Any]:
        """A worker section that names no model or id gets the shared model and its role's id."""
        completed = dict(data)
        for role in ("prefill", "decode"):
            section = data.get(role, {})
            if isinstance(section, Mapping):
                shared = {"model": data.get("model", ""), "worker_id": f"{role}-0"}
                completed[role] = shared | dict(section)
        return completed

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


SECTIONS: Mapping[str, type[BaseModel]] = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}


@dataclass(frozen=True)
class _Source:
    """Values of one source, and how an error message names it."""

    name: str
    values: Mapping[str, Any]


def load_settings(
    config_file: Path | None = None, flags: Mapping[str, Any] | None = None
) -> Settings:
    """Merge the sources. `flags` is a nested mapping of the values given on the command line.

    Raises ConfigurationError, one line that names the source, the key and what it accepts.
    """
    sources = [_read_file(config_file), _read_environment(), _Source("command line", flags or {})]
    merged: dict[str, Any] = {}
    for source in sources:
        merged = _merge(merged, source.values)
    try:
        return Settings(**merged)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, sources)) from error


def _read_file(config_file: Path | None) -> _Source:
    path = config_file or DEFAULT_FILE
    if config_file is None and not path.exists():
        return _Source(str(path), {})
    try:
        return _Source(str(path), tomllib.loads(path.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot read: {error.strerror}") from error


def _read_environment() -> _Source:
    try:
        values = EnvSettingsSource(Settings)()
    except SettingsError as error:
        raise ConfigurationError(f"environment: {error}") from error
    for name in os.environ:
        _check_variable(name.upper())
    return _Source("environment", values)


def _check_variable(name: str) -> None:
    """Refuse a nested name of no section.

    Others that are unknown pass: beside a service called "kvstore", Kubernetes sets KVSTORE_PORT.
    """
    if not name.startswith(ENV_PREFIX) or ENV_DELIMITER not in name:
        return
    section = name.removeprefix(ENV_PREFIX).split(ENV_DELIMITER)[0].lower()
    if section not in SECTIONS:
        raise ConfigurationError(
            f"environment: {name}: unknown section; accepted are {', '.join(SECTIONS)}"
        )


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _explain(error: ValidationError, sources: Sequence[_Source]) -> str:
    """The first problem in one line: where it was read, its key, what to write instead."""
    problem = error.errors(include_url=False)[0]
    path = [str(part) for part in problem["loc"]]
    source = next((s.name for s in reversed(sources) if _holds(s.values, path)), "settings")
    key = ".".join(path)
    if source == "environment":
        key = ENV_PREFIX + ENV_DELIMITER.join(path).upper()
    if problem["type"] == "extra_forbidden":
        return f"{source}: {key}: unknown option; accepted are {', '.join(_accepted(path[:-1]))}"
    expected = EXPECTED.get(problem["type"], problem["msg"])
    return f"{source}: {key}: cannot use {problem['input']!r}: {expected}"


def _holds(values: Mapping[str, Any], path: Sequence[str]) -> bool:
    here: Any = values
    for part in path:
        if not isinstance(here, Mapping) or part not in here:
            return False
        here = here[part]
    return True


def _accepted(section: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Settings
    names = iter(section)
    for name in names:
        nested = model.model_fields[name].annotation
        if get_origin(nested) is dict:  # tables by name: those of any name have the same keys
            nested = get_args(nested)[1]
            next(names)
        assert isinstance(nested, type)
        assert issubclass(nested, BaseModel)
        model = nested
    return list(model.model_fields)
