"""`PrefixCache`: prompts of a `transformers` model start from what the store has of them."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import DynamicCache, PreTrainedModel

from kvstore.client.huggingface.architecture import architecture, context_limit
from kvstore.client.huggingface.blocks import Prefix, load_prefix, save_blocks
from kvstore.client.huggingface.checkpoint import weights_digest
from kvstore.client.huggingface.model import (
    check_loaded_from,
    check_model,
    digest_in_memory,
    find_kv,
    revision,
)
from kvstore.client.huggingface.tokens import TokenRecord
from kvstore.client.sync import SyncClient
from kvstore.core.errors import IdentityMismatchError, InvalidArgumentError, KVStoreError
from kvstore.core.hashing import block_hashes
from kvstore.core.identity import ModelIdentity
from kvstore.core.ids import BlockHash
from kvstore.tiers.base import TierKind

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class CachedPrompt:
    """One prompt, or a batch of prompts of one length, while it is generated from."""

    cache: DynamicCache
    """For `generate(past_key_values=...)` and for the model's own forward. All layers keep all
    tokens, also those with a sliding window."""
    num_cached_tokens: int
    """Leading tokens of every row that need not be computed; at least one does."""
    hit_tokens: Mapping[TierKind, int]
    """The same by the tier that they came from, of all rows together."""
    num_saved_blocks: int = 0
    """Blocks that the store lacked and has now; known when the context is left."""


@dataclass(frozen=True, slots=True)
class PrefixCacheStatistics:
    prompt_tokens: int
    cached_tokens: int
    """Of these, not computed."""
    saved_blocks: int
    errors: Mapping[str, int]
    """Of the store, by class; each cost a recomputation or a block that was not saved."""


class PrefixCache:
    """Fills and saves `transformers` caches, block by block, under the prefix hash chain.

    Ownership: neither client nor model is owned; both must outlive it. Threads: any number, each in
    contexts of its own. Failure: a store that does not answer costs the hit, never the generation;
    it is logged and counted. Cost: making one reads all weights once (1.5 GB/s and more), for their
    digest is part of every block's name.
    """

    def __init__(
        self,
        client: SyncClient,
        model: PreTrainedModel,
        *,
        checkpoint: Path | str | None = None,
        block_size_tokens: int = 16,
        deadline_s: float = 2.0,
    ) -> None:
        """`client`: from `kvstore.open(...)` or `SyncClient.connect(...)`.

        `checkpoint`: the folder that the model was loaded from, to share blocks with the workers
        that serve it (with the same `block_size_tokens` and dtype); it is compared with what is in
        memory. None = shared with all who have the same weights in memory. `deadline_s`: longest
        wait for the store, once before and once after generation.

        Raises InvalidArgumentError for a model whose KV cannot be cached, IdentityMismatchError for
        a checkpoint of other weights, ConfigurationError for one that cannot be read.
        """
        check_model(model)
        self._client = client
        self._model = model
        self._deadline_s = deadline_s
        self._kv = find_kv(model, block_size_tokens)
        self._revision = revision(model)
        self._limit = context_limit(model.config)
        self._vocab_size: int = model.config.get_text_config().vocab_size
        self.identity = ModelIdentity(
            _weights(model, checkpoint), architecture(model.config), self._kv.layout
        )
        self._root = self.identity.root()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()

    @contextmanager
    def prompt(self, input_ids: torch.Tensor) -> Iterator[CachedPrompt]:
        """A cache that holds what the store has of `input_ids`, `[row, token]`. Leaving the context
        saves the full blocks that it holds by then, generated tokens included; leaving it by an
        exception saves nothing.

        Generate inside of the context, with the same `input_ids`; no padding, no beams. Raises
        InvalidArgumentError for token ids that the model has not got, prompts beyond its context,
        and calls of the model whose KV would not follow from the tokens; IdentityMismatchError if
        the model's weights changed since this object was made.
        """
        prompt = self._checked(input_ids)
        size = self._kv.layout.block_size_tokens
        prefix = self._load(self._hashes(prompt[:, :-1]))
        num_cached = prefix.cache.get_seq_length()
        tiers = Counter(prefix.tiers)
        cached = CachedPrompt(
            prefix.cache, num_cached, {tier: n * size for tier, n in tiers.items()}
        )
        self._count(prompt_tokens=prompt.numel(), cached_tokens=num_cached * len(prompt))
        record = TokenRecord(prefix.cache, prompt)
        with record.following(self._model):
            yield cached
        rows = self._hashes(record.tokens()[:, : self._limit])
        cached.num_saved_blocks = self._save(prefix.cache, rows, num_cached // size)
        self._count(saved_blocks=cached.num_saved_blocks)

    def statistics(self) -> PrefixCacheStatistics:
        with self._lock:
            counts = self._counts
            return PrefixCacheStatistics(
                counts["prompt_tokens"],
                counts["cached_tokens"],
                counts["saved_blocks"],
                dict(self._errors),
            )

    def _checked(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids on the CPU."""
        if not isinstance(input_ids, torch.Tensor) or input_ids.dim() != 2:
            raise InvalidArgumentError("input_ids must be a tensor [row, token]")
        if input_ids.is_floating_point() or not input_ids.numel():
            raise InvalidArgumentError("input_ids must be integers, and at least one")
        length, prompt = input_ids.shape[1], input_ids.detach().cpu()
        if self._limit is not None and length > self._limit:
            raise InvalidArgumentError(
                f"input_ids has {length} tokens, and the model has a prefix to cache up to "
                f"{self._limit}"
            )
        if int(prompt.min()) < 0 or int(prompt.max()) >= self._vocab_size:
            raise InvalidArgumentError(
                f"input_ids must lie in [0, {self._vocab_size}), the model's vocabulary"
            )
        if revision(self._model) != self._revision:
            raise IdentityMismatchError(
                "the model's weights changed or moved since; make a new PrefixCache for it"
            )
        return prompt

    def _hashes(self, tokens: torch.Tensor) -> list[list[BlockHash]]:
        """Of the full blocks of each row."""
        size = self._kv.layout.block_size_tokens
        return [block_hashes(self._root, row, size) for row in tokens.numpy()]

    def _load(self, rows: Sequence[Sequence[BlockHash]]) -> Prefix:
        try:
            return load_prefix(self._client, self._kv, rows, self._deadline_s)
        except KVStoreError as error:
            self._failed("load", error)
            return Prefix(DynamicCache())

    def _save(
        self, cache: DynamicCache, rows: Sequence[Sequence[BlockHash]], first_block: int
    ) -> int:
        try:
            return save_blocks(
                self._client, self._kv.layout, cache, rows, first_block, self._deadline_s
            )
        except KVStoreError as error:
            self._failed("save", error)
            return 0

    def _failed(self, what: str, error: KVStoreError) -> None:
        _log.warning("could not %s blocks, going on without: %s", what, error)
        with self._lock:
            self._errors[type(error).__name__] += 1

    def _count(self, **numbers: int) -> None:
        with self._lock:
            self._counts.update(numbers)

    def __repr__(self) -> str:
        return f"PrefixCache({type(self._model).__name__}, {self._kv.layout})"


def _weights(model: PreTrainedModel, checkpoint: Path | str | None) -> str:
    if checkpoint is None:
        return digest_in_memory(model)
    check_loaded_from(model, Path(checkpoint))
    return weights_digest(Path(checkpoint))
