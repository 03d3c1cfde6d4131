"""For tests: small random checkpoints of many model families, whose greedy answers are clear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from model_runner.loading import no_progress_bar

VOCAB = 199
_MIN_MARGIN = 5e-3
"""Between the two largest logits of every step; rounding moves them by up to 3e-4."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_NO_GROUPS = {key: value for key, value in _COMMON.items() if key != "num_key_value_heads"}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_experts": 4}
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]

FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_COMMON),
    "llama-tied-mha": LlamaConfig(**_NO_GROUPS, num_key_value_heads=4, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**_COMMON),
    "qwen2-some-layers-sliding": Qwen2Config(
        **_COMMON, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**_COMMON, head_dim=16),
    "mistral-sliding": MistralConfig(**_COMMON, sliding_window=9),
    "gemma": GemmaConfig(**_COMMON, head_dim=16),
    "gemma2-softcap-sliding": Gemma2Config(**_COMMON, head_dim=16, sliding_window=8),
    "gemma3-sliding": Gemma3TextConfig(
        **_COMMON, head_dim=16, sliding_window=8, layer_types=_ALTERNATING
    ),
    "phi": PhiConfig(**_COMMON),
    "phi3": Phi3Config(**_COMMON),
    "gpt-neox": GPTNeoXConfig(**_NO_GROUPS),
    "gpt2-no-rope": GPT2Config(
        vocab_size=VOCAB, n_embd=64, n_layer=3, n_head=4, n_positions=128, eos_token_id=1
    ),
    "opt-no-rope": OPTConfig(
        vocab_size=VOCAB, hidden_size=64, num_hidden_layers=3, ffn_dim=96, num_attention_heads=4,
        max_position_embeddings=128, word_embed_proj_dim=64, eos_token_id=1, pad_token_id=0,
    ),
    "smollm3-partly-no-rope": SmolLM3Config(**_COMMON, no_rope_layer_interval=2),
    "olmo2": Olmo2Config(**_COMMON),
    "cohere2-sliding": Cohere2Config(**_COMMON, sliding_window=8, layer_types=_ALTERNATING),
    "mixtral-moe": MixtralConfig(**_COMMON, num_local_experts=4, num_experts_per_tok=2),
    "qwen2-moe": Qwen2MoeConfig(**_COMMON, **_EXPERTS, shared_expert_intermediate_size=32),
    "qwen3-moe": Qwen3MoeConfig(**_COMMON, **_EXPERTS | {"head_dim": 16}),
    "gpt-oss-sinks-moe": GptOssConfig(
        **_COMMON, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=8
    ),
}  # fmt: skip


def family_checkpoint(name: str, folder: Path, seed: int = 0) -> Path:
    """Write a random model of the family (config and safetensors) into `folder`; returns it. The
    same arguments write the same weights."""
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(FAMILIES[name], dtype=torch.float32)
    _randomize(model, seed)
    with no_progress_bar():
        model.save_pretrained(folder)
    return folder


class ClearReference:
    """What plain `transformers` answers greedily: float32, CPU, eager attention, past EOS.

    Answers are computed once and kept. Whoever asks for one in which a step was a close call, which
    another order of the same additions could decide otherwise, fails by an assertion. Threads: one
    at a time.
    """

    def __init__(self, checkpoint: Path) -> None:
        auto: Any = AutoModelForCausalLM
        self._model = auto.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self._answers: dict[tuple[int, ...], _Answer] = {}

    def __call__(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        assert self.is_clear(prompt, max_tokens), f"take another prompt than {prompt}"
        return self._answer(prompt, max_tokens).token_ids[:max_tokens]

    def is_clear(self, prompt: Sequence[int], max_tokens: int) -> bool:
        return min(self._answer(prompt, max_tokens).margins[:max_tokens]) >= _MIN_MARGIN

    @torch.inference_mode()
    def routing_margin(self, token_ids: Sequence[int]) -> float:
        """How much better the last expert that a token goes to is than the next one, at least; of
        a model without experts, infinite."""
        config = self._model.config
        if not hasattr(config, "num_experts_per_tok"):
            return math.inf
        output = self._model(torch.tensor([list(token_ids)]), output_router_logits=True)
        chosen = config.num_experts_per_tok
        best = torch.cat(output.router_logits).topk(chosen + 1).values
        return float((best[:, -2] - best[:, -1]).min())

    def _answer(self, prompt: Sequence[int], max_tokens: int) -> _Answer:
        known = self._answers.get(tuple(prompt))
        if known is None or len(known.token_ids) < max_tokens:
            known = self._answers[tuple(prompt)] = self._generate(prompt, max_tokens)
        return known

    @torch.inference_mode()
    def _generate(self, prompt: Sequence[int], max_tokens: int) -> _Answer:
        output = self._model.generate(
            torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        first, second = torch.cat(output.logits).topk(2).values.unbind(-1)
        return _Answer(output.sequences[0, len(prompt) :].tolist(), (first - second).tolist())


@dataclass(frozen=True, slots=True)
class _Answer:
    token_ids: list[int]
    margins: list[float]
    """Between the two largest logits, of each step."""


@torch.no_grad()
def _randomize(model: Any, seed: int) -> None:
    """Everything is random, biases and norms too: a model that leaves one out answers otherwise.
    Scales as in `tiny`: attention picks, and answers are clear and vary."""
    generator = torch.Generator().manual_seed(seed)
    head = model.get_output_embeddings().weight
    tied = head is model.get_input_embeddings().weight
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for name, weight in sorted(model.named_parameters()):
        noise = torch.empty_like(weight).normal_(generator=generator)
        if weight.dim() == 1:
            weight += 0.1 * noise
            if tied and _is_last_norm(name):
                weight += 75
        elif id(weight) in tables:
            # Small beside what the layers add, or else answers repeat their last token.
            weight.copy_(noise * (0.02 if tied else 0.5))
        elif weight is head:
            weight.copy_(noise * 10 / math.sqrt(weight.shape[-1]))
        else:
            gain = 1.25 if "q_proj" in name or "k_proj" in name else 1.0
            weight.copy_(noise * gain / math.sqrt(min(weight.shape[-2:])))


def _is_last_norm(name: str) -> bool:
    """It takes the place of a head's scale where the head is the small table of embeddings."""
    return name.endswith("weight") and not any(part.isdecimal() for part in name.split("."))
