"""Structured logs: one line a record, as `key=value` or JSON, with the request it belongs to."""

from __future__ import annotations

import json
import logging
import time
from contextvars import ContextVar
from typing import Literal, TextIO

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the request that the current task works for; part of every log line it writes."""

_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup_logging(
    stream: TextIO, *, level: str = "INFO", style: Literal["text", "json"] = "text"
) -> None:
    """Send the logs of the whole process to `stream`, replacing what was set up before.

    Call once, from the entry point of a process. `extra={...}` of a log call become fields of the
    line.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonFormatter() if style == "json" else _TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What a line says, in the order in which it says it."""
    fields: dict[str, object] = {
        "time": _utc(record.created),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    if (current := request_id.get()) is not None:
        fields["request_id"] = current
    # Libraries put private attributes on each record, with a leading underscore.
    extra = {k: v for k, v in vars(record).items() if k not in _OWN_ATTRIBUTES}
    fields |= {k: v for k, v in extra.items() if not k.startswith("_")}
    if record.exc_info:
        fields["exception"] = logging.Formatter().formatException(record.exc_info)
    return fields


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(fields_of(record), default=str)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{key}={_quoted(value)}" for key, value in fields_of(record).items())


def _quoted(value: object) -> str:
    """Quoted where it would not read back as one value: so no record can forge a second one."""
    text = str(value)
    plain = text.isprintable() and text and not set(text) & set(' "=\\')
    return text if plain else json.dumps(text)


def _utc(created_s: float) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created_s))
    return f"{seconds}.{int(created_s % 1 * 1000):03d}Z"
