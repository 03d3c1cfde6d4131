"""The store for plain `transformers` users.

    from kvstore.client.huggingface import PrefixCache

    with kvstore.open("cache", host="1GiB", disk="10GiB") as store:
        prefixes = PrefixCache(store, model)
        with prefixes.prompt(input_ids) as cached:
            output = model.generate(input_ids, past_key_values=cached.cache, max_new_tokens=64)

Needs torch and transformers; nothing else in `kvstore` imports this package.
"""

from __future__ import annotations

from kvstore.client.huggingface.prefix_cache import (
    CachedPrompt,
    PrefixCache,
    PrefixCacheStatistics,
)

__all__ = ["CachedPrompt", "PrefixCache", "PrefixCacheStatistics"]
