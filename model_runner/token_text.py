"""What single tokens read as."""

from __future__ import annotations

import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True)
class TokenText:
    """One token by itself. A token may be part of a character only: then `data` says which bytes,
    and `text` spells them, as in `bytes:\\xe2\\x80`."""

    text: str
    data: bytes


class TokenTexts:
    """Texts of one tokenizer's tokens, decoded once each: memory is bounded by the vocabulary. One
    thread."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        # Decoded alone, a token would lose the space that it begins with: decoders drop the one at
        # the beginning of a text.
        self._before = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._before_text = self._decode(self._before)
        self._texts: dict[int, TokenText] = {}

    def is_special(self, token_id: int) -> bool:
        """It is no part of a text."""
        return token_id in self._special

    def of(self, token_id: int) -> TokenText:
        if token_id not in self._texts:
            self._texts[token_id] = self._read(token_id)
        return self._texts[token_id]

    def _read(self, token_id: int) -> TokenText:
        text = self._decode([*self._before, token_id])[len(self._before_text) :]
        if _UNFINISHED not in text:
            return TokenText(text, text.encode())
        data = _bytes_of(str(self._tokenizer.convert_ids_to_tokens(token_id)))
        if data is None:
            return TokenText(text, text.encode())
        return TokenText("bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data)

    def _decode(self, token_ids: list[int]) -> str:
        text = self._tokenizer.decode(
            token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text


def _bytes_of(piece: str) -> bytes | None:
    """The bytes that a vocabulary's entry stands for, if it is of one of the two usual kinds:
    `<0xE2>`, or one character for each byte."""
    if match := _BYTE_TOKEN.fullmatch(piece):
        return bytes.fromhex(match[1])
    if all(character in _BYTE_OF for character in piece):
        return bytes(_BYTE_OF[character] for character in piece)
    return None


def _byte_alphabet() -> dict[str, int]:
    """Byte-level vocabularies write a byte as its Latin-1 character where that is visible, and the
    others, in order, as the characters from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    alphabet = {chr(byte): byte for byte in visible}
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()
