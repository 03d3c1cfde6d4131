"""Calls of tools in the text of an answer, as Hermes models write them. Pure.

```
  It is <tool_call>\\n{"name": "clock", "arguments": {"zone": "UTC"}}\\n</tool_call>
  text                             one call
```
What is not exactly that stays text. White space around a call is no part of the text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

OPEN = "<tool_call>"
CLOSE = "</tool_call>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """Of a function. `index` counts the calls of one answer, from 0."""

    index: int
    id: str
    name: str
    arguments: str
    """A JSON object, as text."""


class ToolCallReader:
    """Reads the text of one answer as it grows. What may belong to a call is held back until that
    is decided, or until `flush`: as much as the answer is long, at most."""

    def __init__(self, draw_id: Callable[[], str]) -> None:
        self._draw_id = draw_id
        self.num_calls = 0
        self._held = ""
        self._inside = False
        self._scanned = 0
        """Characters inside of a call in which its end does not begin."""
        self._after_call = False
        self._space = ""
        """Before the call that is being read: text, if it turns out to be none."""

    def push(self, text: str) -> list[str | ToolCall]:
        """What this text made certain, in its order."""
        self._held += text
        parts: list[str | ToolCall] = []
        while True:
            step = list(self._inside_step() if self._inside else self._outside_step())
            parts += [part for part in step if part]
            if not self._goes_on:
                return parts

    def flush(self) -> str:
        """The rest: no more text will come. A call that was not finished is text."""
        rest = self._text(self._space + OPEN) if self._inside else ""
        rest += self._held if self._inside else self._text(self._held)
        self._held = ""
        return rest

    def _outside_step(self) -> Iterator[str]:
        before, opened, after = self._held.partition(OPEN)
        self._goes_on = bool(opened)
        if opened:
            self._inside, self._scanned, self._held = True, 0, after
            text = before.rstrip()
            self._space = before[len(text) :]
            yield self._text(text)
            return
        kept = _undecided(before)
        self._held = before[len(before) - kept :]
        yield self._text(before[: len(before) - kept])

    def _inside_step(self) -> Iterator[str | ToolCall]:
        end = self._held.find(CLOSE, self._scanned)
        self._goes_on = end >= 0
        if end < 0:
            self._scanned = max(0, len(self._held) - len(CLOSE))
            return
        body, self._held = self._held[:end], self._held[end + len(CLOSE) :]
        self._inside = False
        call = _read(body)
        if call is None:
            yield self._text(self._space + OPEN) + body + CLOSE
            return
        self._after_call = True
        yield ToolCall(self.num_calls, self._draw_id(), call.name, call.arguments)
        self.num_calls += 1

    def _text(self, text: str) -> str:
        if not self._after_call:
            return text
        text = text.lstrip()
        self._after_call = not text
        return text


def _undecided(text: str) -> int:
    """Length of the end of `text` that may be the beginning of a call, or the space before one."""
    begun = next((n for n in range(len(OPEN) - 1, 0, -1) if text.endswith(OPEN[:n])), 0)
    before = text[: len(text) - begun]
    return begun + len(before) - len(before.rstrip())


@dataclass(frozen=True, slots=True)
class _Function:
    name: str
    arguments: str


def _read(body: str) -> _Function | None:
    try:
        call = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    match call:
        case {"name": str(name), "arguments": dict(arguments)} if name:
            return _Function(name, json.dumps(arguments, ensure_ascii=False))
    return None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
