"""A loaded `transformers` model: the layout of its blocks, and the identity of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from kvstore.client.huggingface.checkpoint import weight_files
from kvstore.core.encoding import encode_fields
from kvstore.core.errors import (
    ConfigurationError,
    IdentityMismatchError,
    InvalidArgumentError,
)
from kvstore.core.layout import KVLayout

Revision: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ModelKV:
    """What the KV of a model is like."""

    layout: KVLayout
    devices: Sequence[torch.device]
    """Of each layer's K and V."""


@dataclass(frozen=True, slots=True)
class LayerKV:
    """What a cache holds of one layer: `[row, kv_head, token, head_dim]` each."""

    keys: torch.Tensor
    values: torch.Tensor


def layers_of(cache: DynamicCache) -> list[LayerKV]:
    """Of the layers that keep K and V of every token, and have some."""
    full = (layer for layer in cache.layers if isinstance(layer, DynamicLayer))
    return [
        LayerKV(layer.keys, layer.values)
        for layer in full
        if layer.keys is not None and layer.values is not None and layer.keys.dim() == 4
    ]


def check_model(model: PreTrainedModel) -> None:
    """Raises InvalidArgumentError for what has no KV that its tokens alone determine."""
    if not isinstance(model, PreTrainedModel):
        raise InvalidArgumentError(
            f"model is a {type(model).__name__}: give the transformers model itself, as "
            "AutoModelForCausalLM.from_pretrained returns it"
        )
    if model.training:
        raise InvalidArgumentError("model is in training mode: call model.eval() first")
    if model.config.is_encoder_decoder:
        raise _unsupported(model, "only decoders have a prefix to cache")
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise _unsupported(model, "it has adapters; merge them into the weights first")
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if others := kinds - {"full_attention", "sliding_attention"}:
        raise _unsupported(model, f"it has layers of type {sorted(others)[0]!r}")


@torch.no_grad()
def find_kv(model: PreTrainedModel, block_size_tokens: int) -> ModelKV:
    """Runs the model on one token, for configurations name the same thing in many ways.

    Raises InvalidArgumentError unless every layer caches K and V of one and the same shape.
    """
    cache = DynamicCache()
    token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    try:
        model(input_ids=token, past_key_values=cache, use_cache=True)
    except (AttributeError, NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise _unsupported(model, f"it does not run with a DynamicCache ({reason})") from error
    layers = layers_of(cache)
    if not len(layers) == len(cache.layers) == model.config.get_text_config().num_hidden_layers:
        raise _unsupported(model, "not every layer keeps K and V in the cache")
    shapes = {(kv.shape, kv.dtype) for layer in layers for kv in (layer.keys, layer.values)}
    if len(shapes) != 1:
        raise _unsupported(model, "K and V differ in shape, or from layer to layer")
    (shape, dtype), *_ = shapes
    name = str(dtype).removeprefix("torch.")
    layout = KVLayout(len(layers), shape[1], shape[3], block_size_tokens, name)
    return ModelKV(layout, [layer.keys.device for layer in layers])


def digest_in_memory(model: PreTrainedModel) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights as they are now, as hex. Reads
    every byte, about 1.5 GB/s a thread, and four of them."""
    state = model.state_dict()
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = list(pool.map(_tensor_digest, state, state.values()))
    return hashlib.sha256(encode_fields("kvstore.weights.memory.v1", *digests)).hexdigest()


def check_loaded_from(model: PreTrainedModel, folder: Path) -> None:
    """Raises IdentityMismatchError if a weight differs from what the folder's files hold, or none
    is there under its name; ConfigurationError if they cannot be read. Reads every byte."""
    state, compared = model.state_dict(), 0
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in state.keys() & set(tensors.keys()):
                    _check_same(name, state[name], tensors.get_tensor(name), folder)
                    compared += 1
        except (OSError, SafetensorError) as error:
            raise ConfigurationError(f"checkpoint {str(file)!r} cannot be read: {error}") from error
    if not compared:
        raise IdentityMismatchError(f"checkpoint {str(folder)!r} has no weight of this model")


def revision(model: PreTrainedModel) -> Revision:
    """Changes when a weight is replaced or changed in place; a microsecond for each."""
    return tuple(
        (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        for weight in model.parameters()
    )


def _tensor_digest(name: str, tensor: torch.Tensor) -> bytes:
    try:
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise InvalidArgumentError(
            f"model: the bytes of {name} cannot be read ({error}); load it into memory, without "
            "offloading"
        ) from error
    content = hashlib.sha256(flat.data).digest()
    shape = (str(size) for size in tensor.shape)
    return encode_fields("kvstore.weight.v1", name, str(tensor.dtype), " ".join(shape), content)


def _check_same(name: str, loaded: torch.Tensor, stored: torch.Tensor, folder: Path) -> None:
    if loaded.shape != stored.shape or not torch.equal(loaded.cpu(), stored.to(loaded.dtype)):
        raise IdentityMismatchError(
            f"checkpoint {str(folder)!r}: {name} is not what the model has in memory; name the "
            "folder that it was loaded from, or none if it was changed since"
        )


def _unsupported(model: PreTrainedModel, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"model {type(model).__name__} is not supported: {why}")
