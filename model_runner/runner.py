"""Runs a decoder on the device tier: tokens and block tables in, logits out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvstore.client.huggingface.architecture import architecture
from kvstore.client.huggingface.checkpoint import weights_digest
from kvstore.core.errors import ConfigurationError
from kvstore.core.identity import ModelIdentity
from kvstore.tiers.device.cache import DeviceCache
from model_runner.attention import CacheContext, GroupedContext, LayerPlace, OnLayer
from model_runner.config import WorkerConfig
from model_runner.kv_groups import KVGroup
from model_runner.loading import load_model, resolve_folder
from model_runner.paged_kv import PagedKV
from model_runner.probe import find_kv, find_max_context_tokens
from model_runner.step import ForwardChunk, Step


class ModelRunner:
    """A loaded model and its device caches, one for each KV group.

    Lifecycle: loading takes as long as reading the weights twice (once for their digest); memory is
    given back when the object is. Threads: `forward` belongs to one thread. Raises
    ConfigurationError for a model or setting that cannot be used, ResourceExhaustedError if the
    device has no room for `device_blocks`.
    """

    def __init__(self, config: WorkerConfig) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        device = _device(config.device)
        folder = resolve_folder(config.model)
        self._model = load_model(folder, getattr(torch, config.dtype), device)
        kv = find_kv(self._model, config.block_size_tokens, config.dtype)
        self.layout, self.groups = kv.layout, kv.groups
        self.max_context_tokens = find_max_context_tokens(
            self._model.config, config.max_context_tokens
        )
        self.identity = ModelIdentity(
            weights_digest(folder), architecture(self._model.config), self.layout
        )
        self.vocab_size: int = self._model.config.get_text_config().vocab_size
        self.eos_token_ids = _eos_token_ids(self._model)
        self.caches = [
            DeviceCache(group.layout, num_blocks, device)
            for group, num_blocks in zip(self.groups, cache_sizes(self.groups, config), strict=True)
        ]
        self._kv = [PagedKV(cache) for cache in self.caches]
        self._places = {
            layer: LayerPlace(number, index)
            for number, group in enumerate(self.groups)
            for index, layer in enumerate(group.layers)
        }

    @property
    def cache(self) -> DeviceCache:
        """The first group's."""
        return self.caches[0]

    @torch.inference_mode()
    def forward(
        self, chunks: Sequence[ForwardChunk], on_layer: OnLayer | None = None
    ) -> torch.Tensor:
        """Compute the chunks' KV into their blocks; logits of each one's last token, or of all of
        its tokens (`all_logits`), chunk by chunk: `[row, vocab]` float32, on the device.

        The blocks that a chunk writes must be in no other chunk's table. Rows are independent: one
        that is not finite (see `sampling.sample`) says nothing about the others.
        """
        steps = [
            Step(chunks, cache.layout, cache.device, number)
            for number, cache in enumerate(self.caches)
        ]
        step = steps[0]
        contexts = [CacheContext(kv, own) for kv, own in zip(self._kv, steps, strict=True)]
        output = self._model(
            input_ids=step.token_ids[None],
            position_ids=step.positions[None],
            use_cache=False,
            logits_to_keep=step.logit_tokens,
            paged=GroupedContext(contexts, self._places, on_layer),
        )
        logits: torch.Tensor = output.logits[0].float()
        assert logits.shape == (len(step.logit_tokens), self.vocab_size)
        return logits

    def __repr__(self) -> str:
        return f"ModelRunner({type(self._model).__name__}, {self.layout}, {self.caches})"


def cache_sizes(groups: Sequence[KVGroup], config: WorkerConfig) -> list[int]:
    """Blocks of each group's device cache: `device_blocks` of the first, which a request needs most
    of. Of another one as many, or what `max_running` requests hold of it while a step computes
    `max_batch_tokens`, and as much again: for blocks on their way to the store, and as a cache."""
    sizes = [config.device_blocks]
    step_blocks = -(-config.max_batch_tokens // config.block_size_tokens)
    for group in groups[1:]:
        assert group.window_blocks is not None
        held = config.max_running * (2 * group.window_blocks + 2) + step_blocks
        sizes.append(min(config.device_blocks, 2 * held))
    return sizes


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch: AssertionError if built without CUDA
        raise ConfigurationError(f"device {name!r} cannot be used: {error}") from error
    return device


def _eos_token_ids(model: torch.nn.Module) -> frozenset[int]:
    generation = model.generation_config
    ids = generation.eos_token_id  # type: ignore[union-attr]
    match ids:
        case None:
            return frozenset()
        case int():
            return frozenset({ids})
        case _:
            return frozenset(ids)  # type: ignore[arg-type]
