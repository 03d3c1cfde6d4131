from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from cluster.demo.trace import (
    TRACE_BLOCK_TOKENS,
    TraceRequest,
    parse_trace,
    read_trace,
    synthetic_trace,
)
from kvstore.core.errors import ConfigurationError

LINE = '{"timestamp": 7, "input_length": 600, "output_length": 3, "hash_ids": [0, 5]}\n'


def test_lines_become_requests_and_blank_ones_nothing() -> None:
    parsed = list(parse_trace([LINE, "\n", LINE], "trace"))
    assert parsed == [TraceRequest(7, 600, 3, (0, 5))] * 2


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_reads_plain_and_compressed_files_up_to_the_limit(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    data = (LINE * 5 + "rubbish after the limit").encode()
    file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert len(read_trace(file, 4)) == 4


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2: Expecting"),
        ("[1]", "line 2: expected an object"),
        ("{}", "line 2: hash_ids must be"),
        (LINE.replace("[0, 5]", '["0", 5]'), "line 2: hash_ids must be"),
        (LINE.replace("[0, 5]", "[0, -5]"), "line 2: hash_ids must be"),
        (LINE.replace("[0, 5]", "[0]"), "line 2: 1 hash_ids for an input_length of 600"),
        (LINE.replace("7", "true"), "line 2: timestamp must be a number"),
        (LINE.replace('"output_length": 3, ', ""), "line 2: output_length must be a number"),
    ],
)
def test_wrong_line_is_named(line: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^trace, {problem}"):
        list(parse_trace([LINE, line], "trace"))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.jsonl: cannot read"):
        read_trace(tmp_path / "none.jsonl", 1)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(LINE.encode() * 1000)[:40])
    with pytest.raises(ConfigurationError, match=r"cut\.jsonl\.gz: cannot read"):
        read_trace(cut, 1000)


def test_synthetic_trace_has_the_shape_of_a_recorded_one() -> None:
    trace = synthetic_trace(6)
    for request in trace:
        assert len(request.hash_ids) == -(-request.input_length // TRACE_BLOCK_TOKENS)
    assert {request.hash_ids[0] for request in trace} == {0}
    first, second, other = (set(trace[i].hash_ids) for i in (0, 1, 2))
    assert first < second
    assert second & other == {0}
