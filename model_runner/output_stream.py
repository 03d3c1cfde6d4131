"""Outputs of one request on their way from the engine's thread to a task."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from dataclasses import replace

from model_runner.engine_output import EngineOutput


class OutputStream:
    """`put` on any thread, `take` in one task of the loop that made it.

    A slow reader never holds the engine back: outputs wait here, and are taken together. Bound: one
    output for each token of an answer, which the context limits.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._lock = threading.Lock()
        self._outputs: list[EngineOutput] = []

    def put(self, output: EngineOutput) -> None:
        """Neither blocks nor raises; dropped when the loop has closed."""
        with self._lock:
            self._outputs.append(output)
            first = len(self._outputs) == 1
        if first:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody reads
                self._loop.call_soon_threadsafe(self._arrived.set)

    async def take(self) -> list[EngineOutput]:
        """All that has arrived, waiting for at least one. No deadline: an engine always ends with a
        last output, and a caller that gives up cancels."""
        await self._arrived.wait()
        self._arrived.clear()
        with self._lock:
            outputs, self._outputs = self._outputs, []
        return outputs


def merge_tokens(outputs: Sequence[EngineOutput]) -> list[EngineOutput]:
    """The same news in fewer outputs: tokens that follow each other become one."""
    merged: list[EngineOutput] = []
    for output in outputs:
        if merged and merged[-1].token_ids and output.token_ids:
            merged[-1] = replace(
                merged[-1],
                token_ids=merged[-1].token_ids + output.token_ids,
                logprobs=merged[-1].logprobs + output.logprobs,
                finish_reason=output.finish_reason,
            )
        else:
            merged.append(output)
    return merged
