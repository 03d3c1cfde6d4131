"""Tokens to text, as they come: never half a character, nothing past a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no character (yet)."""
_WINDOW_TOKENS_MAX = 32
"""Bounds the work of a push while no character becomes complete."""
_UNFINISHED_CHARS_MAX = 3
"""A character has at most four bytes, so at most three wait for their last."""
_CONTEXT_TOKENS = 8
_CHARACTER_BYTES_MAX = 4


class TextStream:
    """The text of a growing list of tokens, up to the first stop string.

    The first stop string is the one that is complete first; of those complete at the same
    character, the longest. What might still become part of one, or of a character, is held back
    until it is decided, or until `flush`. The time of a push is that of decoding a few tokens more
    than it brings. One stream, one thread.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str] = (),
        *,
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
    ) -> None:
        self._detokenizer = _Detokenizer(tokenizer, skip_special_tokens)
        self._stops = _StopStrings(stop)
        self._num_unstoppable = min_tokens

    @property
    def stopped(self) -> bool:
        """A stop string has come; there will be no more text."""
        return self._stops.stopped

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens made certain; often empty, and always so once stopped."""
        if self.stopped:
            return ""
        free = min(self._num_unstoppable, len(token_ids))
        self._num_unstoppable -= free
        text = self._detokenizer.push(token_ids[:free]) if free else ""
        rest = token_ids[free:]
        return text + self._stops.push(self._detokenizer.push(rest)) if rest else text

    def flush(self) -> str:
        """The rest: no more tokens will come. Unfinished characters stay as U+FFFD."""
        return "" if self.stopped else self._stops.flush(self._detokenizer.flush())


class _Detokenizer:
    """Decodes a window of the latest tokens.

    ```
      tokens that are done │ context ............ │ new
                           [ window ..............................]
      text of the window:  [ sent ..................... ][ to send ]
    ```
    The context is there because what a token reads as depends on those before it: a decoder drops
    the space at the beginning of a text, and joins bytes into characters.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._window: list[int] = []
        self._num_context = 0
        self._num_sent = 0
        """Characters of the window's text."""

    def push(self, token_ids: Sequence[int]) -> str:
        self._window += token_ids
        text = self._decode(self._window)
        certain = len(text.rstrip(_UNFINISHED))
        if len(self._window) > _WINDOW_TOKENS_MAX:
            certain = max(certain, len(text) - _UNFINISHED_CHARS_MAX)
        new = text[self._num_sent : certain]
        self._num_sent += len(new)
        self._shorten(text)
        return new

    def flush(self) -> str:
        rest = self._decode(self._window)[self._num_sent :]
        self._num_sent += len(rest)
        return rest

    def _shorten(self, text: str) -> None:
        """Drop tokens that have no more influence on what comes."""
        unsent = len(text) - self._num_sent
        if unsent == 0 and self._keep(self._window[self._num_context :], unsent):
            return
        if len(self._window) > _WINDOW_TOKENS_MAX:
            # One of four places in a row is the beginning of a character, if there are any.
            for more in range(_CHARACTER_BYTES_MAX):
                if self._keep(self._window[-_CONTEXT_TOKENS - more :], unsent):
                    return
            self._window = self._window[-_CONTEXT_TOKENS:]
            self._num_context = 0
            self._num_sent = max(0, len(self._decode(self._window)) - unsent)

    def _keep(self, window: list[int], unsent: int) -> bool:
        """Go on with this part of the window, if its text has a clean beginning."""
        text = self._decode(window)
        if not text or text.startswith(_UNFINISHED) or len(text) < unsent:
            return False
        self._window = window
        self._num_context = len(window)
        self._num_sent = len(text) - unsent
        return True

    def _decode(self, token_ids: list[int]) -> str:
        text = self._tokenizer.decode(
            token_ids,
            skip_special_tokens=self._skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        assert isinstance(text, str)
        return text


class _StopStrings:
    """Passes text on up to the first stop string; holds back what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        assert all(stop), "an empty stop string stops everything"
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        text = self._held + text
        found = [(text.index(s) + len(s), text.index(s)) for s in self._stop if s in text]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        kept = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def flush(self, text: str) -> str:
        certain = self.push(text)
        rest, self._held = self._held, ""
        return certain + rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, short of all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
