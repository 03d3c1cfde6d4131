"""Chunked paged prefill and paged decode, in one mixed batch, against plain transformers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    SmolLM3Config,
)

from model_runner.config import WorkerConfig
from model_runner.loading import no_progress_bar
from model_runner.runner import ForwardChunk, ModelRunner

VOCAB = 199
BLOCK = 4
NEW_TOKENS = 12
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_experts": 4}

FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**COMMON),
    "llama-tied-mha": LlamaConfig(
        **COMMON | {"num_key_value_heads": 4}, tie_word_embeddings=True
    ),
    "qwen2": Qwen2Config(**COMMON),
    "qwen2-some-layers-sliding": Qwen2Config(
        **COMMON, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**COMMON, head_dim=16),
    "mistral-sliding": MistralConfig(**COMMON, sliding_window=9),
    "gemma": GemmaConfig(**COMMON, head_dim=16),
    "gemma2-softcap-sliding": Gemma2Config(**COMMON, head_dim=16, sliding_window=8),
    "gemma3-sliding": Gemma3TextConfig(**COMMON, head_dim=16, sliding_window=8),
    "phi": PhiConfig(**COMMON),
    "phi3": Phi3Config(**COMMON),
    "gpt-neox": GPTNeoXConfig(**{k: v for k, v in COMMON.items() if "key_value" not in k}),
    "gpt2-no-rope": GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=128, eos_token_id=1
    ),
    "opt-no-rope": OPTConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=3, ffn_dim=48, num_attention_heads=4,
        max_position_embeddings=128, word_embed_proj_dim=32, eos_token_id=1, pad_token_id=0,
    ),
    "smollm3-partly-no-rope": SmolLM3Config(**COMMON, no_rope_layer_interval=2),
    "olmo2": Olmo2Config(**COMMON),
    "cohere2-sliding": Cohere2Config(**COMMON, sliding_window=8, layer_types=[
        "sliding_attention", "full_attention", "sliding_attention"
    ]),
    "mixtral-moe": MixtralConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2),
    "qwen2-moe": Qwen2MoeConfig(**COMMON, **MOE, shared_expert_intermediate_size=16),
    "gpt-oss-sinks-moe": GptOssConfig(
        **COMMON, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=8
    ),
}  # fmt: skip


@dataclass
class Sequence:
    """One request of the mixed batch: `chunk` prompt tokens a step, then one at a time."""

    token_ids: list[int]
    chunk: int
    block_table: list[int]
    computed: int = 0

    def next_chunk(self) -> ForwardChunk:
        end = min(self.computed + self.chunk, len(self.token_ids))
        return ForwardChunk(self.token_ids[self.computed : end], self.computed, self.block_table)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[request.param])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 1.5 * parameter.shape[-1] ** -0.5)
    path = tmp_path_factory.mktemp(request.param)
    with no_progress_bar():
        model.save_pretrained(path)
    return path


@pytest.fixture
def runner(folder: Path) -> ModelRunner:
    runner = ModelRunner(WorkerConfig(model=str(folder), block_size_tokens=BLOCK, device_blocks=80))
    runner.cache.tensor.fill_(torch.nan)  # what was never written must never count
    return runner


@pytest.fixture
def reference(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def sequences() -> list[Sequence]:
    rng = random.Random(1)
    blocks = list(range(80))
    rng.shuffle(blocks)
    prompts = [(13, 1), (22, 5), (24, BLOCK), (30, 2 * BLOCK), (37, 64), (16, 64), (1, 64), (5, 3)]
    made = []
    for length, chunk in prompts:
        table = [blocks.pop() for _ in range((length + NEW_TOKENS) // BLOCK + 2)]
        made.append(Sequence([rng.randrange(2, VOCAB) for _ in range(length)], chunk, table))
    return made


@torch.inference_mode()
def test_equals_plain_generation(runner: ModelRunner, reference: PreTrainedModel) -> None:
    batch = sequences()
    prompts = [list(s.token_ids) for s in batch]
    logits: list[list[torch.Tensor]] = [[] for _ in batch]
    while any(len(rows) < NEW_TOKENS for rows in logits):
        live = [i for i, rows in enumerate(logits) if len(rows) < NEW_TOKENS]
        chunks = [batch[i].next_chunk() for i in live]
        for i, chunk, row in zip(live, chunks, runner.forward(chunks), strict=True):
            batch[i].computed = chunk.end
            if chunk.end == len(batch[i].token_ids):
                logits[i].append(row)
                batch[i].token_ids.append(int(row.argmax()))

    for sequence, prompt, rows in zip(batch, prompts, logits, strict=True):
        expected = reference.generate(
            torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False,
            eos_token_id=None, attention_mask=torch.ones(1, len(prompt)),
        )[0].tolist()  # fmt: skip
        assert sequence.token_ids == expected
        plain = reference(torch.tensor([expected]), use_cache=False).logits[0]
        torch.testing.assert_close(
            torch.stack(rows), plain[len(prompt) - 1 : -1], atol=1e-4, rtol=0
        )
