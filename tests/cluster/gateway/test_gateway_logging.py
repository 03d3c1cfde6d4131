"""Structured logs."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.observability.logging import _quoted, request_id, setup_logging


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield
    root.handlers = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("restored_logging")
def test_json_lines_carry_request_and_fields() -> None:
    stream = io.StringIO()
    setup_logging(stream, style="json")
    token = request_id.set("req-1")
    logging.getLogger("a.b").warning("served %s", "it", extra={"status": 200})
    request_id.reset(token)
    logging.getLogger("a.b").debug("too quiet")
    logging.getLogger("a.b").info("later")
    lines = map(json.loads, stream.getvalue().splitlines())
    first, second = (line for line in lines if line["logger"] == "a.b")  # others may log, too
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "warning",
        "logger": "a.b",
        "message": "served it",
        "request_id": "req-1",
        "status": 200,
    }
    assert "request_id" not in second


@pytest.mark.usefixtures("restored_logging")
def test_text_lines_are_one_line_each() -> None:
    stream = io.StringIO()
    setup_logging(stream)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("a").exception('say "hello"\nlevel=forged')
    (line,) = stream.getvalue().splitlines()
    assert ' message="say \\"hello\\"\\nlevel=forged" ' in line
    assert "ValueError: broken" in line


@given(st.text())
def test_quoted_values_read_back(text) -> None:
    quoted = _quoted(text)
    assert (json.loads(quoted) if quoted.startswith('"') else quoted) == text
    assert "\n" not in quoted
