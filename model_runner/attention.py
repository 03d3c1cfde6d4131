"""Attention over the paged device tier, as an attention implementation of `transformers`.

A model loaded with `attn_implementation=NAME` calls `paged_attention` in each layer. What the step
computes reaches it as the keyword argument `paged` of the model's forward: a `PagedContext`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from kvstore.tiers.device.cache import DeviceCache
from model_runner.step import Group, KVRows, Step

NAME = "kvstore_paged"


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One layer's call, as the model makes it. Queries, keys and values of the new tokens are
    `[head, token, head_dim]`, after rotary embedding."""

    module: torch.nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float | None
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None
    """`[head]`: a logit that takes part in the softmax and has no value."""


class PagedContext(Protocol):
    """What answers the attention calls of one forward pass."""

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """`[token, head, head_dim]`, contiguous."""


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    paged: PagedContext | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """The signature is that of `transformers`; its mask is not used, as the step has its own."""
    assert paged is not None, "the model does not pass keyword arguments on to its attention"
    assert query.shape[0] == 1, "chunks are packed into one row"
    call = AttentionCall(
        module, query[0], key[0], value[0], scaling, sliding_window, softcap, s_aux
    )
    return paged.attend(call)[None], None


AttentionInterface.register(NAME, paged_attention)


class CacheContext:
    """Attends over a device cache: writes the new tokens' K and V to their slots, then reads each
    group's keys with one gather. One forward pass, one thread."""

    def __init__(self, cache: DeviceCache, step: Step) -> None:
        self._cache = cache
        self._step = step
        self._rows_per_layer = KVRows(cache.layout).per_layer
        self._rows = cache.tensor.view(-1, cache.layout.block_size_tokens, cache.layout.head_dim)
        # Padding and the unwritten tail of a block are read under a mask: they must be finite.
        cache.tensor.index_fill_(0, step.opened_blocks, 0)

    def attend(self, call: AttentionCall) -> torch.Tensor:
        layer = int(call.module.layer_idx)  # type: ignore[arg-type]
        self._write(layer, call)
        query = call.query.transpose(0, 1)
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        for group in self._step.groups(call.window):
            keys, values = self._keys_values(layer, group, call)
            asked = query[group.tokens].view(group.num_sequences, -1, *query.shape[1:])
            answer = _attend(asked.transpose(1, 2), keys, values, group.mask, call)
            output[group.tokens] = answer.transpose(1, 2).flatten(0, 1)
        return output

    def _write(self, layer: int, call: AttentionCall) -> None:
        view = self._cache.layer(layer)
        slots = (self._step.slot_blocks, slice(None), self._step.slot_offsets)
        view[:, 0][slots] = call.key.transpose(0, 1)
        view[:, 1][slots] = call.value.transpose(0, 1)

    def _keys_values(
        self, layer: int, group: Group, call: AttentionCall
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`[sequence, kv_head, key, head_dim]` each."""
        if group.rows is None:
            return call.key[None, :, group.tokens], call.value[None, :, group.tokens]
        rows = (group.rows + layer * self._rows_per_layer).view(-1)
        gathered = self._rows.index_select(0, rows)
        both = gathered.view(*group.rows.shape[:3], -1, gathered.shape[-1])
        return both[0, :, :, : group.num_keys], both[1, :, :, : group.num_keys]


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    call: AttentionCall,
) -> torch.Tensor:
    """`[sequence, head, token, head_dim]` queries attend to keys and values with fewer heads."""
    if call.softcap is not None or call.sinks is not None:
        return _attend_explicitly(query, keys, values, mask, call)
    sequences, heads, tokens, head_dim = query.shape
    if tokens > 1:
        return scaled_dot_product_attention(
            query, keys, values, mask, is_causal=mask is None, scale=call.scaling, enable_gqa=True
        )
    # The query heads that share a kv head take the place of tokens: keys are read once for all.
    packed = query.reshape(sequences, keys.shape[1], -1, head_dim)
    answer = scaled_dot_product_attention(packed, keys, values, mask, scale=call.scaling)
    return answer.reshape(sequences, heads, 1, head_dim)


def _attend_explicitly(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    call: AttentionCall,
) -> torch.Tensor:
    """For what the fused kernel has no argument for: capped scores and sinks."""
    sequences, heads, tokens, head_dim = query.shape
    if mask is None:
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()
    shared = query.reshape(sequences, keys.shape[1], -1, tokens, head_dim)
    scaling = head_dim**-0.5 if call.scaling is None else call.scaling
    scores = (shared @ keys[:, :, None].transpose(-1, -2) * scaling).flatten(1, 2)
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    scores = scores.float().masked_fill(~mask, -torch.inf)
    if call.sinks is not None:
        sink = call.sinks.float().view(1, -1, 1, 1).expand(sequences, heads, tokens, 1)
        scores = torch.cat((scores, sink), dim=-1)
    weights = scores.softmax(-1)[..., : keys.shape[2]].to(values.dtype)
    shared_weights = weights.view(sequences, keys.shape[1], -1, tokens, keys.shape[2])
    return (shared_weights @ values[:, :, None]).flatten(1, 2)
