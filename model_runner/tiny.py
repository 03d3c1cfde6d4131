"""A small model of random weights, with a tokenizer: for tests, demonstrations and benchmarks that
need a real decoder but no download."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from model_runner.loading import no_progress_bar

BOS = "<|begin|>"
EOS = "<|end|>"
_ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]

_CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class TinyShape:
    """Llama with grouped-query attention; by default 19 M parameters."""

    hidden_size: int = 384
    intermediate_size: int = 1024
    num_layers: int = 10
    num_heads: int = 6
    num_kv_heads: int = 2
    max_context_tokens: int = 2048
    vocab_size: int = 4096


SMALL = TinyShape(64, 128, 2, 4, 2, 512, 512)
"""For tests: milliseconds to build and to run."""


def build_checkpoint(
    folder: Path | str, *, texts: Iterable[str], seed: int = 0, shape: TinyShape | None = None
) -> Path:
    """Write config, weights (safetensors) and tokenizer into `folder`, creating it; returns it.

    The same arguments write the same bytes. The tokenizer is byte-level BPE trained on `texts`;
    with little text its vocabulary, and so the model's, is smaller than asked for.
    """
    folder = Path(folder)
    shape = shape or TinyShape()
    tokenizer = _train_tokenizer(texts, shape)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.max_context_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype=torch.float32,
    )
    model = LlamaForCausalLM(config)
    _randomize(model, seed)
    with no_progress_bar():
        model.save_pretrained(folder)
    return folder


def _train_tokenizer(texts: Iterable[str], shape: TinyShape) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocab_size,
        special_tokens=[BOS, EOS, *_ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=_ROLES,
        chat_template=_CHAT_TEMPLATE,
        model_max_length=shape.max_context_tokens,
        clean_up_tokenization_spaces=False,
    )


@torch.no_grad()
def _randomize(model: LlamaForCausalLM, seed: int) -> None:
    """Greedy answers vary, and are clear: the two largest logits lie 1.8 apart (median; 0.05 at
    the first percentile), where rounding moves them by less than 1e-4."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        if weight.dim() == 2:
            weight.normal_(0, _spread(name, weight.shape[1]), generator=generator)


def _spread(name: str, inputs: int) -> float:
    keeps_scale = 1 / math.sqrt(inputs)
    match name.split(".")[-2]:
        case "embed_tokens":
            return 0.5  # small beside what the layers add, or else answers repeat themselves
        case "q_proj" | "k_proj":
            return 1.25 * keeps_scale  # attention that picks more than it averages
        case "lm_head":
            return 10 * keeps_scale  # clear answers
        case _:
            return keeps_scale
