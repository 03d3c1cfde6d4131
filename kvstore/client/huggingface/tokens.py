"""Which tokens a cache holds: seen, not believed.

What is saved is named by the tokens that went through the model into this cache, whatever the
caller says that they were. Calls whose KV would not follow from the tokens are refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from kvstore.client.huggingface.model import layers_of
from kvstore.core.errors import IdentityMismatchError, InvalidArgumentError

_TENSORS = {"input_ids", "attention_mask", "position_ids", "logits_to_keep"}
"""Tensors that a forward pass may be given. Any other one may shape the KV (embeddings, images)."""


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    token_ids: torch.Tensor
    """`[row, token]`, on the CPU."""

    @property
    def end(self) -> int:
        return self.start + self.token_ids.shape[1]


class TokenRecord:
    """The tokens of one cache, from the prompt's cached prefix on. One thread at a time."""

    def __init__(self, cache: DynamicCache, prompt: torch.Tensor) -> None:
        """`prompt`: `[row, token]`, on the CPU. `cache` holds a prefix of it."""
        self._cache = cache
        self._prompt = prompt
        self._end = cache.get_seq_length()
        self._pieces = [_Piece(0, prompt[:, : self._end])]

    @contextmanager
    def following(self, model: PreTrainedModel) -> Iterator[None]:
        """Sees the model's forward passes with this cache; leaves all others alone."""
        names = list(inspect.signature(model.forward).parameters)

        def see(
            _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
        ) -> None:
            if kwargs is None:  # another thread's call, while this hook comes or goes
                return
            call = dict(zip(names, args, strict=False)) | kwargs
            if call.get("past_key_values") is self._cache:
                self._add(call)

        hook = model.register_forward_pre_hook(see, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def tokens(self) -> torch.Tensor:
        """`[row, token]` of all that the cache holds now.

        Raises IdentityMismatchError if something else than the model's forward passes changed it.
        """
        length = self._cache.get_seq_length()
        rows = len(self._prompt)
        sizes = {(layer.keys.shape[0], layer.keys.shape[2]) for layer in layers_of(self._cache)}
        if length > self._end or sizes - {(rows, length)}:
            raise IdentityMismatchError(
                f"the cache holds {sorted(sizes)} (rows, tokens), and the model put "
                f"{(rows, self._end)} there; use it with this model alone"
            )
        longest = max(piece.end for piece in self._pieces)
        tokens = torch.empty((rows, longest), dtype=torch.int64)
        for piece in self._pieces:  # one that starts before the last one's end: that was cropped
            tokens[:, piece.start : piece.end] = piece.token_ids
        return tokens[:, :length]

    def _add(self, call: Mapping[str, Any]) -> None:
        start = self._cache.get_seq_length()
        if start > self._end:
            raise IdentityMismatchError(
                f"the cache holds {start} tokens, and the model put {self._end} there; use it with "
                "this model alone"
            )
        token_ids = _token_ids(call, len(self._prompt))
        _check_positions(call, start, token_ids.shape[1])
        expected = self._prompt[:, start : start + token_ids.shape[1]]
        if not torch.equal(token_ids[:, : expected.shape[1]], expected):
            raise InvalidArgumentError(
                "input_ids differ from those that prompt() was called with; give both the same"
            )
        self._pieces.append(_Piece(start, token_ids))
        self._end = start + token_ids.shape[1]


def _token_ids(call: Mapping[str, Any], rows: int) -> torch.Tensor:
    given = {name for name, value in call.items() if isinstance(value, torch.Tensor)}
    if others := given - _TENSORS:
        raise InvalidArgumentError(
            f"{min(others)}: KV that depends on more than token ids cannot be shared; generate "
            "without the cache"
        )
    token_ids: torch.Tensor | None = call.get("input_ids")
    if token_ids is None:
        raise InvalidArgumentError("input_ids is missing: it names what is cached")
    if len(token_ids) != rows:
        raise InvalidArgumentError(
            f"input_ids has {len(token_ids)} rows, and prompt() was given {rows}: for beams and "
            "num_return_sequences give prompt() as many rows, and generate() one for each"
        )
    return token_ids.detach().cpu()


def _check_positions(call: Mapping[str, Any], start: int, count: int) -> None:
    mask, positions = call.get("attention_mask"), call.get("position_ids")
    if mask is not None and (mask.dim() != 2 or not bool(mask.all())):
        raise InvalidArgumentError(
            "attention_mask must be ones [row, token]: padding moves tokens from where their "
            "prefix has them; give prompts of one length, or one by one"
        )
    if positions is None:
        return
    expected = torch.arange(start, start + count, device=positions.device)
    if positions.dim() != 2 or not bool((positions == expected).all()):
        raise InvalidArgumentError(
            f"position_ids must go on at {start}, where the cache ends: leave them out; assisted "
            "decoding cannot start from a filled cache"
        )
