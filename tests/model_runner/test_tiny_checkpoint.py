from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_runner.tiny import SMALL, TinyShape, build_checkpoint

TEXTS = ["Ein Text, naïve und kurz.", "blocks of tokens, tokens of blocks 😀"] * 30


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_the_same_arguments_write_the_same_bytes(tmp_path: Path) -> None:
    first = contents(build_checkpoint(tmp_path / "a", texts=TEXTS, shape=SMALL))
    again = contents(build_checkpoint(tmp_path / "b", texts=iter(TEXTS), shape=SMALL))
    other = contents(build_checkpoint(tmp_path / "c", texts=TEXTS, seed=1, shape=SMALL))
    assert first == again
    assert {n for n in first if first[n] != other[n]} == {"model.safetensors"}


def test_the_default_shape_is_a_model_of_tens_of_millions_of_parameters(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, texts=TEXTS, shape=TinyShape())
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert 10e6 < model.num_parameters() < 30e6
    assert model.config.max_position_embeddings == 2048


def test_the_tokenizer_gives_text_back_and_has_a_chat_template(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, texts=TEXTS, shape=SMALL)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "naïve 日本語  two spaces 😀\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    chat = [{"role": "user", "content": "Hi"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids) == "<|begin|><|user|>\nHi\n<|assistant|>\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    folder = build_checkpoint(tmp_path_factory.mktemp("tiny"), texts=TEXTS, shape=SMALL)
    return AutoModelForCausalLM.from_pretrained(folder)


@torch.inference_mode()
def test_greedy_answers_are_clear_cut_and_vary(model: torch.nn.Module) -> None:
    prompts = torch.stack([torch.arange(start, start + 40) for start in range(10, 170, 10)])
    answers = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=64, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    assert min(len(set(answer[40:].tolist())) for answer in answers) > 16
    top = model(answers).logits[:, 39:-1].topk(2).values
    assert (top[..., 0] - top[..., 1]).quantile(0.01) > 0.01


@torch.inference_mode()
def test_an_answer_depends_on_the_beginning_of_a_long_prompt(model: torch.nn.Module) -> None:
    """Else a cache that served the wrong first block would go unnoticed."""
    prompt = torch.arange(200)[None]
    changed = prompt.clone()
    changed[0, 0] += 1
    assert (model(prompt).logits[0, -1] - model(changed).logits[0, -1]).abs().max() > 0.1
