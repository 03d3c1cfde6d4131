"""What cannot be cached rightly is refused with one line that says what to do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from kvstore.client.huggingface import PrefixCache
from kvstore.client.sync import SyncClient
from kvstore.core.errors import (
    ConfigurationError,
    IdentityMismatchError,
    InvalidArgumentError,
    KVStoreError,
)

from .conftest import BLOCK, COMMON, VOCAB, generate, save, tokens


@pytest.fixture
def prefixes(store: SyncClient, llama: PreTrainedModel) -> PrefixCache:
    return PrefixCache(store, llama, block_size_tokens=BLOCK)


def refused(
    error: type[KVStoreError], message: str, store: SyncClient, model: Any, **settings: Any
) -> None:
    with pytest.raises(error, match=message) as caught:
        PrefixCache(store, model, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("input_ids", "message"),
    [
        ([[1, 2]], "must be a tensor"),
        (torch.tensor([1, 2]), r"\[row, token\]"),
        (torch.ones(1, 4), "must be integers"),
        (torch.ones(1, 0, dtype=torch.int64), "at least one"),
        (torch.full((1, 4), VOCAB), rf"\[0, {VOCAB}\)"),
        (torch.full((1, 4), -1), rf"\[0, {VOCAB}\)"),
        (torch.ones(1, 129, dtype=torch.int64), "129 tokens.* up to 128"),
    ],
)
def test_prompts(prefixes: PrefixCache, input_ids: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message), prefixes.prompt(input_ids):
        pass


def test_prompts_in_any_memory_order_are_the_same(
    prefixes: PrefixCache, llama: PreTrainedModel
) -> None:
    wide = tokens(60)
    scattered = wide[:, ::2]
    assert not scattered.is_contiguous()
    with prefixes.prompt(scattered) as cached:
        output = generate(llama, scattered, past_key_values=cached.cache)
    with prefixes.prompt(scattered.contiguous()) as cached:
        assert cached.num_cached_tokens == 28
        assert torch.equal(
            generate(llama, scattered.contiguous(), past_key_values=cached.cache), output
        )


def left_padded(prompt: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(prompt)
    mask[:, :3] = 0
    return mask


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p, c: generate(m, p.flip(1), past_key_values=c), "input_ids differ"),
        (
            lambda m, p, c: m(
                p[:, c.get_seq_length() :], past_key_values=c, attention_mask=left_padded(p)
            ),
            "attention_mask must be ones",
        ),
        (lambda m, p, c: generate(m, p, past_key_values=c, num_beams=2), "2 rows.* given 1"),
        (
            lambda m, p, c: m(
                inputs_embeds=m.get_input_embeddings()(p), past_key_values=c, use_cache=True
            ),
            "inputs_embeds",
        ),
        (
            lambda m, p, c: m(
                p[:, c.get_seq_length() :], past_key_values=c,
                position_ids=7 + torch.arange(c.get_seq_length(), p.shape[1])[None],
            ),
            "position_ids must go on",
        ),
    ],
    ids=["another prompt", "padding", "beams", "embeddings", "positions"],
)  # fmt: skip
def test_calls_whose_kv_does_not_follow_from_the_tokens(
    prefixes: PrefixCache, llama: PreTrainedModel, call: Any, message: str, warm: bool
) -> None:
    prompt = tokens(30)
    plain = generate(llama, prompt)
    if warm:
        with prefixes.prompt(prompt) as cached:
            generate(llama, prompt, past_key_values=cached.cache)
    before = prefixes.statistics().saved_blocks
    with pytest.raises(InvalidArgumentError, match=message), prefixes.prompt(prompt) as cached:
        call(llama, prompt, cached.cache)
    assert prefixes.statistics().saved_blocks == before
    assert not llama._forward_pre_hooks
    with prefixes.prompt(prompt) as cached:
        assert torch.equal(generate(llama, prompt, past_key_values=cached.cache), plain)


def test_a_cache_that_another_model_wrote_to(
    prefixes: PrefixCache, llama: PreTrainedModel, llama_folder: Path
) -> None:
    other = AutoModelForCausalLM.from_pretrained(llama_folder)
    prompt = tokens(30)
    with (
        pytest.raises(IdentityMismatchError, match="this model alone"),
        prefixes.prompt(prompt) as cached,
    ):
        generate(other, prompt, past_key_values=cached.cache)
    assert prefixes.statistics().saved_blocks == 0


def test_an_exception_inside_saves_nothing(prefixes: PrefixCache, llama: PreTrainedModel) -> None:
    def interrupted(prompt: torch.Tensor) -> None:
        with prefixes.prompt(prompt) as cached:
            generate(llama, prompt, past_key_values=cached.cache)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(tokens(30))
    assert prefixes.statistics().saved_blocks == 0


def test_nothing_generated_saves_nothing(prefixes: PrefixCache) -> None:
    with prefixes.prompt(tokens(30)) as cached:
        pass
    assert cached.num_saved_blocks == 0


@pytest.mark.parametrize("change", ["in place", "replaced"])
def test_weights_that_changed_since(
    prefixes: PrefixCache, llama: PreTrainedModel, change: str
) -> None:
    weight = llama.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        if change == "in place":
            weight.mul_(1.5)
        else:
            llama.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(weight * 1.5)
    with pytest.raises(IdentityMismatchError, match="new PrefixCache"), prefixes.prompt(tokens(9)):
        pass


def test_a_checkpoint_of_other_weights(
    store: SyncClient, llama: PreTrainedModel, llama_folder: Path, tmp_path: Path
) -> None:
    same = shutil.copytree(llama_folder, tmp_path / "same")
    PrefixCache(store, llama, checkpoint=same)
    other = save(LlamaConfig(**COMMON), tmp_path / "other", seed=1)
    refused(IdentityMismatchError, "is not what the model has", store, llama, checkpoint=other)
    wide = save(LlamaConfig(**COMMON | {"hidden_size": 64}), tmp_path / "wide")
    refused(IdentityMismatchError, "is not what the model has", store, llama, checkpoint=wide)
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(ConfigurationError, "no model.safetensors", store, llama, checkpoint=empty)
    (same / "model.safetensors").write_bytes(b"nothing")
    refused(ConfigurationError, "cannot be read", store, llama, checkpoint=same)


def test_models_in_another_state(
    store: SyncClient, llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(InvalidArgumentError, "is a str", store, "llama")
    refused(InvalidArgumentError, r"model.eval\(\)", store, llama.train())
    refused(InvalidArgumentError, "block_size_tokens", store, llama.eval(), block_size_tokens=0)
    monkeypatch.setattr(llama, "peft_config", {"default": object()}, raising=False)
    refused(InvalidArgumentError, "merge them", store, llama)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4), "Mamba"),
        (
            DeepseekV3Config(
                **COMMON | {"num_key_value_heads": 4}, first_k_dense_replace=3, kv_lora_rank=8,
                q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=12,
            ),
            "K and V differ in shape",
        ),
        (
            Llama4TextConfig(
                **COMMON, head_dim=8, num_local_experts=2, attention_chunk_size=8,
                intermediate_size_mlp=32,
            ),
            "chunked_attention",
        ),
    ],
    ids=["no attention", "latent attention", "chunked attention"],
)  # fmt: skip
def test_architectures(store: SyncClient, config: PreTrainedConfig, message: str) -> None:
    refused(InvalidArgumentError, message, store, AutoModelForCausalLM.from_config(config).eval())


def test_rope_that_changes_with_length_limits_the_context(store: SyncClient) -> None:
    """Beyond its first range, KV of a prefix would depend on what follows it."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    rope["original_max_position_embeddings"] = 32
    model = AutoModelForCausalLM.from_config(LlamaConfig(**COMMON, rope_parameters=rope)).eval()
    prefixes = PrefixCache(store, model, block_size_tokens=BLOCK)
    with pytest.raises(InvalidArgumentError, match="up to 32"), prefixes.prompt(tokens(33)):
        pass
    with prefixes.prompt(tokens(30)) as cached:
        generate(model, tokens(30), past_key_values=cached.cache)
    assert cached.cache.get_seq_length() == 41
    assert cached.num_saved_blocks == 8
