"""Server-sent events, as OpenAI clients read them."""

from __future__ import annotations

import json
from collections.abc import Mapping

DONE = b"data: [DONE]\n\n"

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""Keep proxies from holding tokens back."""


def event(data: Mapping[str, object]) -> bytes:
    """One event. JSON escapes line breaks, so that the text of a model cannot forge another one."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"
