"""Sources of settings: which one wins, and what each mistake is answered with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.config import load_settings
from kvstore.core.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("KVSTORE_")]:
        monkeypatch.delenv(name)


def write(text: str, name: str = "kvstore.toml") -> Path:
    file = Path(name)
    file.write_text(text)
    return file


def test_defaults_need_no_source() -> None:
    settings = load_settings()
    assert settings.node.node_id == "node-0"
    assert (settings.prefill.worker_id, settings.decode.worker_id) == ("prefill-0", "decode-0")
    assert settings.ray_address is None


def test_file_in_the_current_folder_is_read() -> None:
    write('model = "m"\n[node]\nhost = "3MiB"\n')
    settings = load_settings()
    assert settings.node.host == 3 << 20
    assert settings.prefill.model == settings.decode.model == "m"


def test_named_file_replaces_the_one_in_the_current_folder() -> None:
    write("[gateway]\nport = 1\n")
    assert load_settings(write("[gateway]\nport = 2\n", "other.toml")).gateway.port == 2


def test_later_sources_win_key_by_key(monkeypatch: pytest.MonkeyPatch) -> None:
    write('[node]\nnode_id = "file"\nhost = "1MiB"\ndisk = "1MiB"\n')
    monkeypatch.setenv("KVSTORE_NODE__HOST", "2MiB")
    monkeypatch.setenv("KVSTORE_NODE__DISK", "2MiB")
    node = load_settings(flags={"node": {"disk": "3MiB"}}).node
    assert (node.node_id, node.host, node.disk) == ("file", 2 << 20, 3 << 20)


def test_worker_section_may_name_its_own_model() -> None:
    settings = load_settings(flags={"model": "shared", "decode": {"model": "own"}})
    assert (settings.prefill.model, settings.decode.model) == ("shared", "own")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().model = "other"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[node\n", ["kvstore.toml: not valid TOML", "line 1"]),
        ("[node]\nhst = 1\n", ["kvstore.toml: node.hst: unknown option", "node_id, host, disk"]),
        ("[nodes]\nhost = 1\n", ["kvstore.toml: nodes: unknown option", "node, prefill, decode"]),
        ('[node]\nhost = "much"\n', ["kvstore.toml: node.host: cannot use 'much'", "512MiB"]),
        ("node = 3\n", ["kvstore.toml: node: cannot use 3", "table"]),
        ("[gateway]\nport = 70000\n", ["gateway.port: cannot use 70000", "65535"]),
        ('[conductor]\npolicy = "x"\n', ["conductor.policy: cannot use 'x'", "round-robin"]),
    ],
)
def test_error_in_the_file_is_one_line_that_names_it(text: str, words: list[str]) -> None:
    write(text)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_missing_and_unreadable_files_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"none\.toml: cannot read: No such file"):
        load_settings(Path("none.toml"))
    Path("folder.toml").mkdir()
    with pytest.raises(ConfigurationError, match=r"folder\.toml: cannot read: Is a directory"):
        load_settings(Path("folder.toml"))
    Path("bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"bytes\.toml: not valid TOML"):
        load_settings(Path("bytes.toml"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("KVSTORE_NODE__HOST", "x", "environment: KVSTORE_NODE__HOST: cannot use 'x'"),
        ("KVSTORE_GATEWAY__PRT", "1", "environment: KVSTORE_GATEWAY__PRT: unknown option"),
        ("KVSTORE_NODES__HOST", "1", "environment: KVSTORE_NODES__HOST: unknown section"),
        ("KVSTORE_NODE", "{", "environment: .*node"),
    ],
)
def test_error_in_the_environment_names_the_variable(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=message):
        load_settings()


def test_variables_that_are_not_ours_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSTORE_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("KVSTORE_SERVICE_HOST", "10.0.0.1")
    assert load_settings().gateway.port == 8000


def test_error_in_a_flag_is_blamed_on_the_command_line() -> None:
    write("[gateway]\nport = 1\n")
    with pytest.raises(ConfigurationError, match=r"command line: gateway\.port: cannot use 'x'"):
        load_settings(flags={"gateway": {"port": "x"}})
