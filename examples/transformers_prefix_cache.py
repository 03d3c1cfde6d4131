"""`model.generate` that starts from what a store has of the prompt: plain, cold, host, disk.

    python examples/transformers_prefix_cache.py                     # a random 19 M-parameter Llama
    python examples/transformers_prefix_cache.py --model ./model --tokens 2000

Time to the first token of the same prompt, median of five; every answer must equal the plain one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import kvstore
from kvstore.client.huggingface import PrefixCache

RUNS = 5


def small_model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=384, intermediate_size=1024, num_hidden_layers=10,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=4096,
        initializer_range=0.05,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def first_token_ms(model: PreTrainedModel, prompt: torch.Tensor, prefixes: PrefixCache | None):
    """Milliseconds, cached tokens and the token, with the store's part in both."""
    started = time.perf_counter()
    if prefixes is None:
        output, cached_tokens = model.generate(prompt, max_new_tokens=1, do_sample=False), 0
    else:
        with prefixes.prompt(prompt) as cached:
            output = model.generate(
                prompt, past_key_values=cached.cache, max_new_tokens=1, do_sample=False
            )
        cached_tokens = cached.num_cached_tokens
    return 1e3 * (time.perf_counter() - started), cached_tokens, output[0, -1].item()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of a model; default: a random one")
    parser.add_argument("--tokens", type=int, default=1024, help="length of the prompt")
    asked = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(asked.model) if asked.model else small_model()
    vocab_size = model.config.get_text_config().vocab_size
    prompts = torch.randint(2, vocab_size, (RUNS, asked.tokens)).split(1)

    def measure(name: str, prefixes: PrefixCache | None) -> list[int]:
        times, cached, answers = zip(
            *(first_token_ms(model, p, prefixes) for p in prompts), strict=True
        )
        print(f"{name:6}{statistics.median(times):9.1f} ms  {cached[0]:6} of {asked.tokens} cached")
        return list(answers)

    first_token_ms(model, prompts[0], None)  # warms up
    plain = measure("plain", None)
    sizes = {"host": "1GiB", "disk": "1GiB"}
    with tempfile.TemporaryDirectory() as folder:
        with kvstore.open(folder, **sizes) as store:
            prefixes = PrefixCache(store, model)
            answers = [measure("cold", prefixes), measure("host", prefixes)]
        with kvstore.open(folder, **sizes) as store:  # as after a restart
            answers.append(measure("disk", PrefixCache(store, model)))
    same = all(answer == plain for answer in answers)
    print("all answers are equal" if same else "answers differ")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
