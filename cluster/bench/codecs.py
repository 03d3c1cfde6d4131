"""`kvstore bench codecs`: what each codec costs and gives.

Sizes and speeds are those of a block of random bfloat16 values. Error and KL divergence come from a
model: its KV of a text goes through the codec, and the logits of the text that follows are compared
with those from the untouched KV.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from cluster.bench.alternate import best_rates
from cluster.bench.case import BenchOptions, Case
from cluster.demo.model import build_model, own_texts
from kvstore.codecs.base import AnyArray, Codec, Floats
from kvstore.codecs.dtypes import from_float32
from kvstore.codecs.frame import decode_block, encode_block, encoded_bytes, encoded_bytes_max
from kvstore.codecs.header import HEADER_BYTES
from kvstore.codecs.registry import CODECS
from kvstore.core.layout import KVLayout
from model_runner.loading import load_tokenizer, no_progress_bar

SPEED_LAYOUT = KVLayout(16, 8, 128, 32, "bfloat16")
"""2 MiB: 16 of the layers of an 8B model with grouped-query attention."""
BLOCK_TOKENS = 32
CACHED_TOKENS = 512
"""Of the text, whose KV goes through the codec."""
SCORED_TOKENS = 128
"""Positions after them whose logits are compared."""
MODEL_NOTE = "small Llama of random weights (19 M parameters), on a text of this project"
_SPEED_ROUNDS = 5


def codecs(options: BenchOptions) -> Iterator[Case]:
    """Five cases for each codec. Takes no option."""
    speed_block = _Block(SPEED_LAYOUT)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        model = _Model(build_model(Path(folder)))
        for codec in CODECS.values():
            ratio = encoded_bytes(codec, SPEED_LAYOUT) / SPEED_LAYOUT.block_bytes
            yield Case(f"{codec.name}_bytes_ratio", ratio, "of raw bfloat16")
            yield from model.cases(codec)
            yield from speed_block.cases(codec)


class _Block:
    """A block of normally distributed values, to measure speed with."""

    def __init__(self, layout: KVLayout) -> None:
        values = np.random.default_rng(0).standard_normal(layout.shape).astype(np.float32)
        self._layout = layout
        stored: AnyArray = from_float32(values, layout.dtype)
        self._data = stored.reshape(-1).view(np.uint8).data
        self._back = memoryview(bytearray(layout.block_bytes))

    def cases(self, codec: Codec) -> Iterator[Case]:
        into = memoryview(bytearray(encoded_bytes_max(codec, self._layout)))
        encoded = into[: encoded_bytes(codec, self._layout)]
        rates = best_rates(
            self._layout.block_bytes / 1e9,
            {
                "encode": lambda: encode_block(codec, self._data, self._layout, into),
                "decode": lambda: decode_block(encoded, self._back),
            },
            _SPEED_ROUNDS,
        )
        for name, rate in rates.items():
            yield Case(f"{codec.name}_{name}_gb_per_s", rate, "GB/s", note="of raw, one thread")


class _Model:
    """A model, the KV of the beginning of a text, and its logits for what follows."""

    def __init__(self, folder: Path) -> None:
        with no_progress_bar():
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._model = model.eval()
        text = next(text for text in own_texts() if len(text) > 6000)[:6000]
        ids = load_tokenizer(folder).encode(text)
        self._ids = torch.tensor([ids[: CACHED_TOKENS + SCORED_TOKENS]])
        assert self._ids.shape[1] == CACHED_TOKENS + SCORED_TOKENS
        self._values = self._prefill()
        self._exact = self._log_probabilities(self._values)

    def cases(self, codec: Codec) -> Iterator[Case]:
        decoded, bound = self._through(codec)
        error = float(np.abs(decoded - self._values).max())
        name = codec.name
        yield Case(f"{name}_max_error", error, "", bound or None, "published bound", MODEL_NOTE)
        logs = self._log_probabilities(decoded)
        kl = torch.nn.functional.kl_div(logs, self._exact, log_target=True, reduction="batchmean")
        yield Case(f"{name}_logit_kl", max(kl.item(), 0.0), "nats a token", note=MODEL_NOTE)
        same = (logs.argmax(-1) == self._exact.argmax(-1)).double().mean().item()
        yield Case(f"{name}_same_token", same, "of greedy tokens", note=MODEL_NOTE)

    @torch.no_grad()
    def _prefill(self) -> Floats:
        """KV of the cached part as `[block]` of blocks."""
        cache: Any = DynamicCache()
        self._model(self._ids[:, :CACHED_TOKENS], past_key_values=cache, use_cache=True)
        layers = [np.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
        tokens = np.stack(layers)  # [layer][k|v][kv_head][token][head_dim]
        return np.stack(np.split(tokens, CACHED_TOKENS // BLOCK_TOKENS, axis=3))

    @torch.no_grad()
    def _log_probabilities(self, blocks: Floats) -> torch.Tensor:
        """Of every next token, `[position][token id]`, with that KV."""
        cache: Any = DynamicCache()
        tokens = torch.from_numpy(np.concatenate(list(blocks), axis=3))
        for number, (keys, values) in enumerate(tokens):
            cache.update(keys[None].clone(), values[None].clone(), number)
        logits = self._model(self._ids[:, CACHED_TOKENS:], past_key_values=cache).logits[0]
        return torch.log_softmax(logits.double(), -1)

    def _through(self, codec: Codec) -> tuple[Floats, float]:
        """The KV as it comes back, and the largest error it may have."""
        _, layers, _, heads, _, head_dim = self._values.shape
        layout = KVLayout(layers, heads, head_dim, BLOCK_TOKENS, "float32")
        decoded, bound = np.empty_like(self._values), 0.0
        for block, back in zip(self._values, decoded, strict=True):
            into = memoryview(bytearray(encoded_bytes_max(codec, layout)))
            header = encode_block(codec, memoryview(block).cast("B"), layout, into)
            decode_block(into[: HEADER_BYTES + header.payload_bytes], memoryview(back).cast("B"))
            bound = max(bound, float(codec.error_bound(block, layout).max()))
        return decoded, bound
