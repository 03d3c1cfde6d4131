"""Models and tokenizers from a folder or the Hugging Face hub: safetensors only, and no code from
the repository is run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from kvstore.client.huggingface.checkpoint import weight_files
from kvstore.core.errors import ConfigurationError
from model_runner.attention import NAME

_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_FOREIGN_ERRORS = (
    OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError,
    SafetensorError, StrictDataclassError,
)  # fmt: skip
"""What transformers raises for files that it cannot make a model of."""
_REASON_CHARS_MAX = 300


def resolve_folder(model: str) -> Path:
    """The folder of a model: itself, or the snapshot of a hub id (downloaded if need be).

    Raises ConfigurationError if there is none.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or folder.is_absolute() or model.startswith((".", "~")):
        raise ConfigurationError(f"model {model!r}: no such folder")
    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_FILES))
    except HFValidationError as error:
        raise ConfigurationError(f"model {model!r}: neither a folder nor a hub id") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigurationError(
            f"model {model!r}: no such folder, and the hub did not give it: {_reason(error)}"
        ) from error


def load_config(folder: Path) -> PreTrainedConfig:
    """Raises ConfigurationError for a missing or unreadable configuration, or for an
    encoder-decoder."""
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"model {str(folder)!r}: it has no config.json")
    with _as_configuration_error(folder, "config.json"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.is_encoder_decoder:
        raise ConfigurationError(
            f"model {str(folder)!r}: {config.model_type} is an encoder-decoder, and only decoders "
            "have a prefix to cache"
        )
    return config


def load_model(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A decoder in evaluation mode, with attention over the paged cache.

    Raises ConfigurationError if the weights are missing, corrupt or incomplete, or if the
    architecture is not one for `AutoModelForCausalLM` with a replaceable attention.
    """
    config = load_config(folder)
    weight_files(folder)
    with _as_configuration_error(folder, "weights"), no_progress_bar():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=NAME,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model, info = loaded
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:3])
        raise ConfigurationError(f"model {str(folder)!r}: its weights lack {names}")
    with _as_configuration_error(folder, f"device {device}"):
        placed: PreTrainedModel = model.eval().to(device)
    return placed


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Raises ConfigurationError if the folder has no usable tokenizer."""
    # Files that the tokenizers library cannot parse are plain `Exception`s to it.
    with _as_configuration_error(folder, "tokenizer", (Exception,)):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False
        )
    return tokenizer


@contextmanager
def _as_configuration_error(
    folder: Path, what: str, kinds: tuple[type[Exception], ...] = _FOREIGN_ERRORS
) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        raise ConfigurationError(
            f"model {str(folder)!r}: {what} cannot be used: {_reason(error)}"
        ) from error


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Loading a model is not worth lines on a server's standard error."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _reason(error: Exception) -> str:
    """One line of it, with the type where the message alone says nothing (`KeyError: 'x'`)."""
    text = " ".join(str(error).split())
    if isinstance(error, LookupError) or not text:
        text = f"{type(error).__name__}: {text}"
    return text[:_REASON_CHARS_MAX]
