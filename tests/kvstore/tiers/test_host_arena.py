import os
import signal
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.errors import ConfigurationError, InvalidArgumentError
from kvstore.tiers.host import arena_file
from kvstore.tiers.host.arena import Arena
from kvstore.tiers.host.arena_header import ArenaHeader, decode_arena_header

MIB = 1 << 20


def test_another_mapping_sees_the_bytes_and_the_generations(tmp_path: Path) -> None:
    maker = Arena(tmp_path, MIB)
    other = Arena.attach(maker.path)
    offset = maker.data_offset + 8192
    maker.view(offset, 5)[:] = b"hello"
    assert bytes(other.view(offset, 5)) == b"hello"
    other.view(offset, 5)[:] = b"world"
    assert bytes(maker.view(offset, 5)) == b"world"
    assert other.layers_ready(offset) == 0
    maker.set_layers_ready(offset, 3)
    assert other.layers_ready(offset) == 3
    assert other.layers_ready(offset - 4096) == 0
    before = other.generation(offset)
    assert before == maker.generation(offset)
    maker.bump_generation(offset)
    assert other.generation(offset) == before + 1
    assert other.layers_ready(offset) == 0, "a new life has written nothing"
    assert other.generation(offset - 4096) == before, "counters of other units stay"
    other.close()
    assert maker.path.exists(), "only the maker removes the file"
    maker.close()
    maker.close()
    assert list(tmp_path.iterdir()) == []


def test_another_process_reads_what_this_one_wrote(tmp_path: Path) -> None:
    arena = Arena(tmp_path, MIB)
    arena.view(arena.data_offset, 3)[:] = b"abc"
    arena.bump_generation(arena.data_offset)
    arena.set_layers_ready(arena.data_offset, 5)
    program = (
        "import sys; from kvstore.tiers.host.arena import Arena\n"
        "a = Arena.attach(sys.argv[1]); o = a.data_offset\n"
        "print(bytes(a.view(o, 3)).decode(), a.generation(o), a.layers_ready(o))\n"
        "a.view(o, 3)[:] = b'xyz'; a.set_layers_ready(o, 7); a.close()"
    )
    run = [sys.executable, "-c", program, str(arena.path)]
    answer = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True).stdout
    assert answer.split() == ["abc", str(arena.generation(arena.data_offset)), "5"]
    assert arena.layers_ready(arena.data_offset) == 7
    assert bytes(arena.view(arena.data_offset, 3)) == b"xyz"
    arena.close()


def test_the_file_is_private_sparse_and_aligned(tmp_path: Path) -> None:
    arena = Arena(tmp_path, 256 * MIB)
    status = arena.path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == arena.file_bytes
    assert status.st_blocks * 512 < MIB, "memory is committed as it is touched"
    assert arena.data_offset % (2 * MIB) == 0
    assert arena.capacity_bytes == 256 * MIB
    arena.view(arena.file_bytes - 1, 1)[0] = 1
    arena.bump_generation(arena.file_bytes - 1)
    arena.close()


def test_generations_of_two_arenas_never_meet(tmp_path: Path) -> None:
    first, second = Arena(tmp_path, MIB), Arena(tmp_path, MIB)
    assert first.path != second.path
    distance = abs(first.generation(first.data_offset) - second.generation(second.data_offset))
    assert distance > 1 << 20
    first.close()
    second.close()


def test_only_the_data_area_can_be_viewed(tmp_path: Path) -> None:
    arena = Arena(tmp_path, MIB)
    start, end = arena.data_offset, arena.file_bytes
    assert arena.view(start, MIB).nbytes == MIB
    for offset, length in [(0, 1), (start - 1, 1), (end, 1), (end - 5, 6), (start, -1), (-1, 1)]:
        with pytest.raises(InvalidArgumentError, match="outside"):
            arena.view(offset, length)
    for offset in (0, start - 1, end):
        with pytest.raises(InvalidArgumentError, match="outside"):
            arena.generation(offset)
    arena.close()


def test_views_outlive_the_arena(tmp_path: Path) -> None:
    arena = Arena(tmp_path, MIB)
    view = arena.view(arena.data_offset, 4)
    view[:] = b"1234"
    arena.close()
    assert not arena.path.exists()
    assert bytes(view) == b"1234"


def test_refuses_what_cannot_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="no folder"):
        Arena(tmp_path / "missing", MIB)
    with pytest.raises(ConfigurationError, match=r"more than the .* bytes of memory"):
        Arena(tmp_path, 1 << 50)
    with pytest.raises(ConfigurationError, match="at least 4096 bytes"):
        Arena(tmp_path, 100)
    monkeypatch.setattr(arena_file, "_memory_limit_bytes", lambda: 1 << 60)
    with pytest.raises(ConfigurationError, match=r"do not fit .* bytes free"):
        Arena(tmp_path, 1 << 50)
    assert list(tmp_path.iterdir()) == []


def test_the_limit_of_a_control_group_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(arena_file, "_CGROUP_LIMIT", limit)
    limit.write_text("max\n")
    Arena(tmp_path, MIB).close()
    limit.write_text("3000000\n")
    with pytest.raises(ConfigurationError, match="3000000 bytes of memory"):
        Arena(tmp_path, MIB)


def test_a_filesystem_of_huge_pages_gets_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)
    huge = os.statvfs_result((2 * MIB, 2 * MIB, *[real.f_bavail] * 7, 255))
    monkeypatch.setattr(os, "statvfs", lambda folder: huge)
    arena = Arena(tmp_path, 5 * MIB)
    assert arena.capacity_bytes == 4 * MIB
    assert arena.file_bytes % (2 * MIB) == 0
    arena.close()
    with pytest.raises(ConfigurationError, match=f"at least {2 * MIB} bytes"):
        Arena(tmp_path, MIB)


def test_attach_refuses_what_is_no_arena(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot open"):
        Arena.attach(tmp_path / "missing")
    for content in (b"", b"short", bytes(10_000)):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ConfigurationError, match="arena"):
            Arena.attach(tmp_path / "file")
    arena = Arena(tmp_path, MIB)
    os.truncate(arena.path, arena.file_bytes - 4096)
    with pytest.raises(ConfigurationError, match="header says"):
        Arena.attach(arena.path)
    arena.close()


def test_an_arena_of_a_killed_maker_is_cleared_away(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from kvstore.tiers.host.arena import Arena\n"
        "a = Arena(Path(sys.argv[1]), 1 << 20); print(a.path, flush=True); time.sleep(60)"
    )
    run = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        client = Arena.attach(left)
        Arena(tmp_path, MIB).close()
        assert left.exists(), "its maker lives"
        process.send_signal(signal.SIGKILL)
    alive = Arena(tmp_path, MIB)
    assert not left.exists()
    assert client.view(client.data_offset, 1).nbytes == 1, "who has it mapped keeps it"
    assert list(tmp_path.iterdir()) == [alive.path]
    client.close()
    alive.close()


@given(st.binary(max_size=200))
def test_header_parser_takes_any_bytes(data: bytes) -> None:
    with pytest.raises(ConfigurationError):
        decode_arena_header(data, 10_000_000)


@given(st.integers(1, 1 << 30), st.integers(0, (1 << 62) - 1))
def test_header_round_trip(units: int, base: int) -> None:
    header = ArenaHeader(units * 4096, base)
    assert decode_arena_header(header.encode(), header.file_bytes) == header
    assert header.data_offset >= header.layers_offset + 4 * units
    damaged = bytearray(header.encode())
    struct.pack_into("<I", damaged, 8, 99)
    with pytest.raises(ConfigurationError, match="version 99"):
        decode_arena_header(bytes(damaged), header.file_bytes)
