"""Attention over the paged device tier, as an attention implementation of `transformers`.

A model loaded with `attn_implementation=NAME` calls `paged_attention` in each layer. What the step
computes reaches it as the keyword argument `paged` of the model's forward: a `PagedContext`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from model_runner.paged_kv import PagedKV
from model_runner.step import Step
from model_runner.step_groups import Group

NAME = "kvstore_paged"

OnLayer = Callable[[int], None]
"""Takes the index of a layer of the model whose new K and V are in the cache, or will be when the
device has done what is queued on it. Called on the thread of the forward pass: it must not wait."""


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

    @property
    def layer(self) -> int:
        """Which of the model's it is."""
        return int(self.module.layer_idx)  # type: ignore[arg-type]


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


@dataclass(frozen=True, slots=True)
class LayerPlace:
    """Where the KV of one of the model's layers is."""

    group: int
    index: int
    """Among the group's layers."""


class GroupedContext:
    """Attends each layer over the device cache of its KV group, and tells `on_layer` of it when its
    KV is written. One forward pass, one thread."""

    def __init__(
        self,
        groups: Sequence[CacheContext],
        places: Mapping[int, LayerPlace],
        on_layer: OnLayer | None = None,
    ) -> None:
        self._groups = groups
        self._places = places
        self._on_layer = on_layer

    def attend(self, call: AttentionCall) -> torch.Tensor:
        place = self._places[call.layer]
        answer = self._groups[place.group].attend(call, place.index)
        if self._on_layer is not None:
            self._on_layer(call.layer)
        return answer


class CacheContext:
    """Attends over one device cache: writes the new tokens' K and V to their slots, then reads each
    group's keys with one gather. One forward pass, one thread."""

    def __init__(self, kv: PagedKV, step: Step) -> None:
        self._kv = kv
        self._step = step
        # Padding and the unwritten tail of a block are read under a mask: they must be finite.
        kv.clear(step.opened_blocks)

    def attend(self, call: AttentionCall, layer: int) -> torch.Tensor:
        """`layer`: which of the cache's it is."""
        step, query = self._step, call.query.transpose(0, 1)
        self._kv.write(layer, step.slots, call.key.transpose(0, 1), call.value.transpose(0, 1))
        groups = step.groups(call.window)
        answers = [self._answer(group, query[group.tokens], call, layer) for group in groups]
        return answers[0].contiguous() if len(answers) == 1 else torch.cat(answers)

    def _answer(
        self, group: Group, query: torch.Tensor, call: AttentionCall, layer: int
    ) -> torch.Tensor:
        """`[token, head, head_dim]`, as the group's queries are."""
        asked = query.view(group.num_sequences, -1, *query.shape[1:]).transpose(1, 2)
        keys, values = self._keys_values(group, call, layer)
        return _attend(asked, keys, values, group, call).transpose(1, 2).flatten(0, 1)

    def _keys_values(
        self, group: Group, call: AttentionCall, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`[sequence, kv_head, key, head_dim]` each. Valid until those of the next group."""
        if group.rows is None:
            return call.key[None, :, group.tokens], call.value[None, :, group.tokens]
        both = self._kv.read(layer, group.rows)[..., : group.num_keys, :]
        return both[0], both[1]


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    group: Group,
    call: AttentionCall,
) -> torch.Tensor:
    """`[sequence, head, token, head_dim]` queries attend to keys and values with fewer heads."""
    if call.softcap is not None or call.sinks is not None:
        return _attend_explicitly(query, keys, values, group, call)
    sequences, heads, tokens, head_dim = query.shape
    if tokens > 1:
        return scaled_dot_product_attention(
            query,
            keys,
            values,
            group.mask,
            is_causal=group.is_causal,
            scale=call.scaling,
            enable_gqa=True,
        )
    # The query heads that share a kv head take the place of tokens: keys are read once for all.
    packed = query.reshape(sequences, keys.shape[1], -1, head_dim)
    answer = scaled_dot_product_attention(packed, keys, values, group.mask, scale=call.scaling)
    return answer.reshape(sequences, heads, 1, head_dim)


def _attend_explicitly(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    group: Group,
    call: AttentionCall,
) -> torch.Tensor:
    """For what the fused kernel has no argument for: capped scores and sinks."""
    sequences, heads, tokens, head_dim = query.shape
    shared = query.reshape(sequences, keys.shape[1], -1, tokens, head_dim)
    scaling = head_dim**-0.5 if call.scaling is None else call.scaling
    scores = (shared @ keys[:, :, None].transpose(-1, -2) * scaling).flatten(1, 2)
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    scores = scores.float()
    if group.is_causal:
        scores += torch.full_like(scores[0, 0], -torch.inf).triu(1)
    elif group.mask is not None:
        scores += group.mask
    if call.sinks is not None:
        sink = call.sinks.float().view(1, -1, 1, 1).expand(sequences, heads, tokens, 1)
        scores = torch.cat((scores, sink), dim=-1)
    weights = scores.softmax(-1)[..., : keys.shape[2]].to(values.dtype)
    shared_weights = weights.view(sequences, keys.shape[1], -1, tokens, keys.shape[2])
    return (shared_weights @ values[:, :, None]).flatten(1, 2)
