"""What a model's attention looks like, found by running it on one token.

Configurations name the same thing in many ways and leave some out; the calls that the layers make
do not. An architecture that the paged cache would compute wrongly is refused here, at load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from kvstore.client.huggingface.architecture import context_limit
from kvstore.core.errors import ConfigurationError
from kvstore.core.layout import KVLayout
from model_runner.attention import AttentionCall
from model_runner.kv_groups import KVGroup


@dataclass(slots=True)
class ProbeContext:
    """Records each layer's call and answers zeros."""

    calls: list[AttentionCall] = field(default_factory=list)

    def attend(self, call: AttentionCall) -> torch.Tensor:
        self.calls.append(call)
        heads, tokens, _ = call.query.shape
        return call.value.new_zeros(tokens, heads, call.value.shape[-1])


@dataclass(frozen=True, slots=True)
class ModelKV:
    """What a model keeps of the tokens that it has seen."""

    layout: KVLayout
    """Of a block of all its layers."""
    groups: Sequence[KVGroup]
    """The layers with full attention, if there are any, then those with the largest window."""


def find_kv(model: PreTrainedModel, block_size_tokens: int, dtype: str) -> ModelKV:
    """The shape of this model's blocks, and which layers keep theirs alike.

    Raises ConfigurationError unless every layer keeps K and V of one and the same shape.
    """
    calls = _attention_calls(model)
    num_layers = model.config.get_text_config().num_hidden_layers
    if sorted(call.layer for call in calls) != list(range(num_layers)):
        raise _unsupported(model, "not every layer attends once, through transformers' interface")
    shapes = {(call.key.shape, call.value.shape) for call in calls}
    key_shape, value_shape = shapes.pop()
    if shapes or key_shape != value_shape:
        raise _unsupported(model, "K and V differ in shape, or from layer to layer")
    if any(call.query.shape[-1] != key_shape[-1] for call in calls):
        raise _unsupported(model, "queries and keys differ in shape")
    _check_windows(model, calls)
    num_kv_heads, _, head_dim = key_shape
    layout = KVLayout(num_layers, num_kv_heads, head_dim, block_size_tokens, dtype)
    return ModelKV(layout, _groups(layout, {call.layer: call.window for call in calls}))


def _groups(layout: KVLayout, windows: Mapping[int, int | None]) -> Sequence[KVGroup]:
    """`windows`: of each layer."""
    layers: dict[int | None, list[int]] = {}
    for layer, window in sorted(windows.items()):
        layers.setdefault(window, []).append(layer)
    if len(layers) == 1:
        return [KVGroup(layout, tuple(own), window) for window, own in layers.items()]
    return [
        KVGroup(replace(layout, num_layers=len(own), layers=tuple(own)), tuple(own), window)
        for window, own in sorted(layers.items(), key=_widest_first)
    ]


def _widest_first(group: tuple[int | None, list[int]]) -> float:
    window, _ = group
    return -math.inf if window is None else -window


def find_max_context_tokens(config: PreTrainedConfig, wanted: int | None) -> int:
    """`wanted`, or the longest context that the model has.

    Raises ConfigurationError if the model cannot have so many, or does not say.
    """
    limit = context_limit(config)
    if wanted is None:
        if limit is None:
            raise ConfigurationError("the model names no longest context: set max_context_tokens")
        return limit
    if limit is not None and wanted > limit:
        raise ConfigurationError(
            f"max_context_tokens={wanted} is more than the {limit} that the model can have "
            "with a cacheable prefix"
        )
    return wanted


def _attention_calls(model: PreTrainedModel) -> list[AttentionCall]:
    probe = ProbeContext()
    zero = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    try:
        with torch.inference_mode():
            model(input_ids=zero, position_ids=zero, use_cache=False, paged=probe)
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise _unsupported(model, f"it does not run on the paged cache ({error})") from error
    return probe.calls


def _check_windows(model: PreTrainedModel, calls: list[AttentionCall]) -> None:
    """Some models put their window into the mask alone, which attention does not get to see."""
    config = model.config.get_text_config()
    default = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    layer_types = getattr(config, "layer_types", None) or [default] * len(calls)
    for call in calls:
        kind = layer_types[call.layer]
        if kind == "sliding_attention" and call.window is None:
            raise _unsupported(model, "its layers do not pass their sliding window on")
        if kind not in ("full_attention", "sliding_attention"):
            raise _unsupported(model, f"layers of type {kind!r}")


def _unsupported(model: PreTrainedModel, why: str) -> ConfigurationError:
    return ConfigurationError(f"architecture {type(model).__name__} is not supported: {why}")
