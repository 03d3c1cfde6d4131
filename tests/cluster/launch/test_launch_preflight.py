from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.config import Settings, load_settings
from cluster.launch.preflight import check
from kvstore.core.errors import ConfigurationError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def settings(model: Path | str, tmp_path: Path, **sections: Mapping[str, Any]) -> Settings:
    base = {"model": str(model), "gateway": {"port": 0}, "node": {"arena_folder": tmp_path}}
    merged = {**base, **{name: {**base.get(name, {}), **s} for name, s in sections.items()}}
    return load_settings(tmp_path / "empty.toml", merged)


@pytest.fixture(autouse=True)
def _empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").touch()


def test_settings_that_can_work_pass(model: Path, tmp_path: Path) -> None:
    check(settings(model, tmp_path, node={"disk": "1GiB", "disk_path": tmp_path / "a" / "b"}))
    check(settings("organisation/name", tmp_path))


def test_folder_without_weights_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"prefill\.model: .*safetensors"):
        check(settings(model, tmp_path))


@pytest.mark.parametrize("name", ["", "./none", "/none/at/all", "~/none"])
def test_model_that_is_not_there_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"prefill\.model: "):
        check(settings(name, tmp_path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arena_folder": "/none"}, r"node\.arena_folder: /none"),
        ({"disk": "1GiB"}, r"node\.disk_path: a disk tier needs"),
        ({"disk": "1GiB", "disk_path": "empty.toml/below-a-file"}, r"node\.disk_path: "),
    ],
)
def test_folders_that_cannot_be_used_are_refused(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        check(settings(model, tmp_path, node=values))


def test_port_in_use_is_refused(model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"gateway\.port: .*:{port}.*choose another"):
            check(settings(model, tmp_path, gateway={"port": port}))
    check(settings(model, tmp_path, gateway={"port": port}))


def test_several_workers_cannot_share_a_port(model: Path, tmp_path: Path) -> None:
    one = settings(model, tmp_path, decode={"grpc_address": "127.0.0.1:7000"})
    with pytest.raises(ConfigurationError, match=r"decode\.grpc_address .*2 decode workers"):
        check(one.model_copy(update={"decode_workers": 2}))
