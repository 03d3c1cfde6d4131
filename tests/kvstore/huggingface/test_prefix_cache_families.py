"""Generation from the store equals generation without it, token for token, for every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
)

import kvstore
from kvstore.client.huggingface import PrefixCache
from kvstore.tiers.base import TierKind

from .conftest import BLOCK, COMMON, VOCAB, generate, save, tokens

FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**COMMON),
    "llama-tied-mha": LlamaConfig(**COMMON | {"num_key_value_heads": 4}, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**COMMON),
    "qwen3": Qwen3Config(**COMMON, head_dim=16),
    "mistral-sliding": MistralConfig(**COMMON, sliding_window=9),
    "gemma": GemmaConfig(**COMMON, head_dim=16),
    "gemma2-softcap-sliding": Gemma2Config(**COMMON, head_dim=16, sliding_window=8),
    "gemma3-sliding": Gemma3TextConfig(**COMMON, head_dim=16, sliding_window=8),
    "phi": PhiConfig(**COMMON),
    "phi3": Phi3Config(**COMMON),
    "gpt2-no-rope": GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=128, eos_token_id=1
    ),
    "mixtral-moe": MixtralConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2),
    "qwen2-moe": Qwen2MoeConfig(
        **COMMON, num_experts_per_tok=2, moe_intermediate_size=16, num_experts=4,
        shared_expert_intermediate_size=16,
    ),
    "gpt-oss-sinks-moe": GptOssConfig(
        **COMMON, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=8
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(FAMILIES[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture
def model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


def test_equals_plain_generation_on_every_path(model: PreTrainedModel, tmp_path: Path) -> None:
    prompt = tokens(30)
    plain = generate(model, prompt)
    other = torch.cat([prompt[:, :17], tokens(13, seed=2)], dim=1)
    plain_other = generate(model, other)
    turn = torch.cat([plain, tokens(9, seed=3)], dim=1)
    plain_turn = generate(model, turn)

    with kvstore.open(tmp_path, host="16MiB", disk="64MiB") as store:
        prefixes = PrefixCache(store, model, block_size_tokens=BLOCK)
        for cached_tokens, saved, input_ids, expected in [
            (0, 10, prompt, plain),  # cold: 30 prompt tokens and 11 of the answer that were used
            (28, 0, prompt, plain),  # host
            (16, 6, other, plain_other),  # partial
            (40, 5, turn, plain_turn),  # multi-turn: the answer's blocks, too
        ]:
            with prefixes.prompt(input_ids) as cached:
                output = generate(model, input_ids, past_key_values=cached.cache)
            assert cached.num_cached_tokens == cached.hit_tokens.get(TierKind.HOST, 0)
            assert (cached.num_cached_tokens, cached.num_saved_blocks) == (cached_tokens, saved)
            assert torch.equal(output, expected)

    with kvstore.open(tmp_path, host="16MiB", disk="64MiB") as store:
        prefixes = PrefixCache(store, model, block_size_tokens=BLOCK)
        with prefixes.prompt(turn) as cached:
            output = generate(model, turn, past_key_values=cached.cache)
        assert dict(cached.hit_tokens) == {TierKind.DISK: 48}
        assert torch.equal(output, plain_turn)


def test_what_comes_from_the_store_is_what_was_computed(
    model: PreTrainedModel, store: kvstore.embedded.EmbeddedStore
) -> None:
    """Bit for bit, in all layers; a hit must not merely lead to the same argmax."""
    prefixes = PrefixCache(store, model, block_size_tokens=BLOCK)
    prompt = tokens(25, rows=2)
    with prefixes.prompt(prompt) as cold:
        generate(model, prompt, past_key_values=cold.cache)
    with prefixes.prompt(prompt) as warm:
        pass
    assert warm.num_cached_tokens == 24
    for before, after in zip(cold.cache.layers, warm.cache.layers, strict=True):
        assert torch.equal(before.keys[:, :, :24], after.keys)
        assert torch.equal(before.values[:, :, :24], after.values)
        assert len(torch.unique(after.keys)) > 100
