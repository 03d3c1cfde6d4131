"""The demo's model: the one that the user names, or a small one of random weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

PACKAGES = ("kvstore", "model_runner", "prefill_worker", "decode_worker", "cluster")


@dataclass(frozen=True)
class ModelFacts:
    """What the workload and the tiers are sized by."""

    folder: Path
    vocab_size: int
    context_tokens: int
    token_bytes: int
    """Of KV in float32. An estimate from the configuration: tiers are sized by it, no more."""
    chats: bool
    """Whether the tokenizer knows how to write a chat."""


def build_model(folder: Path) -> Path:
    """Write the small model into `folder`; its tokenizer learns from the project's own texts."""
    from model_runner.tiny import build_checkpoint

    return build_checkpoint(folder, texts=own_texts())


def own_texts() -> Iterator[str]:
    """The modules of the installed packages, and the documentation where there is any."""
    homes = [Path(str(import_module(package).__file__)).parent for package in PACKAGES]
    for home in homes:
        for path in sorted(home.rglob("*.py")):
            yield path.read_text("utf-8")
    for path in sorted((homes[0].parent / "docs").rglob("*.md")):
        yield path.read_text("utf-8")


def read_facts(model: str) -> ModelFacts:
    """Raises ConfigurationError if there is no such model, or none that can be served."""
    from model_runner.loading import load_config, load_tokenizer, resolve_folder
    from model_runner.probe import find_max_context_tokens

    folder = resolve_folder(model)
    config = load_config(folder)
    text = config.get_text_config()
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return ModelFacts(
        folder=folder,
        vocab_size=text.vocab_size,
        context_tokens=find_max_context_tokens(config, None),
        token_bytes=text.num_hidden_layers * 2 * kv_heads * head_dim * 4,
        chats=bool(load_tokenizer(folder).chat_template),
    )
