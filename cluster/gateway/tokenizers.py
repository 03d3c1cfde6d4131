"""Tokenizers of the models that are served, loaded once each."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cluster.wire.v1 import conductor_pb2 as conductor
from kvstore.core.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOADED_MAX = 16


class TokenizerCache:
    """Belongs to one event loop; tokenizers are loaded on threads of it, one load a model.

    Keyed by path and identity root, so that new weights at an old path bring their tokenizer.
    """

    def __init__(self) -> None:
        self._loads: dict[tuple[str, bytes], asyncio.Task[PreTrainedTokenizerBase]] = {}

    async def get(self, model: conductor.ModelInfo) -> PreTrainedTokenizerBase:
        """Raises ConfigurationError if there is no tokenizer at the model's path."""
        key = (model.path, model.identity_root)
        load = self._loads.get(key)
        if load is None or (load.done() and (load.cancelled() or load.exception() is not None)):
            if len(self._loads) >= _LOADED_MAX:
                self._loads.pop(next(iter(self._loads)))
            load = asyncio.create_task(asyncio.to_thread(_load, model.path))
            load.add_done_callback(_note_failure)
            self._loads[key] = load
        # One client that goes away must not end the load that others wait for.
        return await asyncio.shield(load)


def _note_failure(load: asyncio.Task[PreTrainedTokenizerBase]) -> None:
    """A failure that nobody waits for any more is nobody's problem."""
    if not load.cancelled():
        load.exception()


def _load(path: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a corrupt file makes the library raise this very class
        raise ConfigurationError(
            f"no tokenizer can be loaded from {path}: make the model's folder readable on the "
            "gateway's host"
        ) from error
