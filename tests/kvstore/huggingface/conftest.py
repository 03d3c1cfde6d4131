"""Small random models as a user has them: saved as safetensors, loaded from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

import kvstore
from kvstore.client.sync import SyncClient

VOCAB = 199
BLOCK = 4
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


def save(config: PreTrainedConfig, folder: Path, seed: int = 0) -> Path:
    """Weights wide enough for answers that vary, and are clear."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 1.5 * parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return folder


def tokens(count: int, *, seed: int = 1, rows: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCAB, (rows, count), generator=generator)


def generate(model: PreTrainedModel, input_ids: torch.Tensor, **settings: object) -> torch.Tensor:
    """Greedy, to the end."""
    defaults = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    return model.generate(
        input_ids, attention_mask=torch.ones_like(input_ids), **defaults | settings
    )


@pytest.fixture(autouse=True, scope="session")
def no_progress_bar() -> None:
    transformers_logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These models are too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared: do not write into it."""
    return save(LlamaConfig(**COMMON), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def llama(llama_folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(llama_folder)


@pytest.fixture
def store() -> Iterator[SyncClient]:
    with kvstore.open(host="16MiB") as store:
        yield store


@pytest.fixture
def forward_lengths() -> Callable[[PreTrainedModel], list[int]]:
    """Counts the tokens of each forward pass from then on."""

    def watch(model: PreTrainedModel) -> list[int]:
        lengths: list[int] = []
        model.register_forward_pre_hook(
            lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        return lengths

    return watch
