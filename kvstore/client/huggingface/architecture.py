"""What a model's configuration says of its KV: what shapes it, and up to which length a prefix has
one."""

from __future__ import annotations

import json
from typing import Any

_INCIDENTAL_KEYS = frozenset(
    {
        "_name_or_path", "architectures", "attention_dropout", "bos_token_id",
        "chunk_size_feed_forward", "dtype", "embd_pdrop", "eos_token_id", "hidden_dropout",
        "id2label", "initializer_range", "label2id", "output_attentions", "output_hidden_states",
        "pad_token_id", "problem_type", "resid_pdrop", "return_dict", "torch_dtype",
        "transformers_version", "use_cache",
    }
)  # fmt: skip
"""Configuration that leaves the KV as it is. All other keys count, also those not known here: a
needless difference costs cache hits, a missed one would be wrong bytes."""


def architecture(config: Any) -> str:
    """Canonical JSON of what shapes the computation: model type, sizes, rope, and so on. `config`
    is a `PreTrainedConfig`."""
    values = _without_incidental(json.loads(config.to_json_string(use_diff=False)))
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def context_limit(config: Any) -> int | None:
    """The longest sequence whose prefixes can be cached; None if the model names no limit."""
    text_config = config.get_text_config()
    limits = [getattr(text_config, "max_position_embeddings", None), _rope_limit(text_config)]
    return min((limit for limit in limits if limit is not None), default=None)


def _rope_limit(text_config: Any) -> int | None:
    """Where rotary embedding begins to depend on the length of the sequence: from there on, the
    KV of a prefix is not a property of the prefix."""
    rope = getattr(text_config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in ("dynamic", "longrope"):
        return None
    limit: int | None = rope.get("original_max_position_embeddings")
    return limit or text_config.max_position_embeddings


def _without_incidental(value: Any) -> Any:
    match value:
        case dict():
            return {
                key: _without_incidental(item)
                for key, item in value.items()
                if key not in _INCIDENTAL_KEYS
            }
        case list():
            return [_without_incidental(item) for item in value]
        case _:
            return value
