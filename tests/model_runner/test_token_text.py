"""Texts of single tokens, over a real byte-level tokenizer and one with byte tokens."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from model_runner.token_text import TokenText, TokenTexts

END = "<|end|>"


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a text of the 日 theme"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def with_byte_tokens() -> PreTrainedTokenizerFast:
    vocab = {END: 0, "<unk>": 1} | {f"<0x{byte:02X}>": byte + 2 for byte in range(256)}
    vocab |= {piece: len(vocab) + i for i, piece in enumerate(["▁", "▁the", "a"])}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


BYTE_LEVEL, BYTE_TOKENS = byte_level(), with_byte_tokens()


def test_every_byte_of_a_text_is_in_one_token() -> None:
    texts = TokenTexts(BYTE_LEVEL)
    text = " the 日 🦊 é theme\n"
    told = [texts.of(token) for token in BYTE_LEVEL(text).input_ids]
    assert b"".join(token.data for token in told) == text.encode()
    whole = [token for token in told if not token.text.startswith("bytes:")]
    assert all(token.text.encode() == token.data for token in whole)
    assert len(whole) < len(told)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_TOKENS], ids=["byte level", "byte tokens"])
def test_all_256_bytes_are_told_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = TokenTexts(tokenizer)
    told = {texts.of(token).data for token in range(len(tokenizer))}
    assert {bytes([byte]) for byte in range(256)} <= told


def test_parts_of_a_character_are_spelled() -> None:
    token = BYTE_TOKENS.convert_tokens_to_ids("<0xE2>")
    assert TokenTexts(BYTE_TOKENS).of(token) == TokenText(r"bytes:\xe2", b"\xe2")


@pytest.mark.parametrize(("tokenizer", "piece"), [(BYTE_TOKENS, "▁the"), (BYTE_LEVEL, "Ġthe")])
def test_a_token_keeps_the_space_it_begins_with(
    tokenizer: PreTrainedTokenizerFast, piece: str
) -> None:
    token = tokenizer.convert_tokens_to_ids(piece)
    assert TokenTexts(tokenizer).of(token) == TokenText(" the", b" the")


def test_special_tokens_and_tokens_beyond_the_vocabulary() -> None:
    texts = TokenTexts(BYTE_LEVEL)
    assert texts.of(BYTE_LEVEL.eos_token_id).text == END
    assert texts.is_special(BYTE_LEVEL.eos_token_id)
    assert not texts.is_special(BYTE_LEVEL.convert_tokens_to_ids("t"))
    assert texts.of(10_000) == TokenText("", b"")
