"""Sequences of tokens that must not come about."""

from __future__ import annotations

from collections.abc import Sequence


class BadWords:
    """Forbids the token that would complete one. Immutable.

    A word may begin anywhere, in the prompt too. Words are looked up by the token before their
    last one, so that a step looks only at those that it might complete.
    """

    __slots__ = ("_alone", "_by_last_but_one")

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        assert all(words), "an empty word forbids nothing"
        self._alone = [word[0] for word in words if len(word) == 1]
        self._by_last_but_one: dict[int, list[tuple[int, ...]]] = {}
        for word in words:
            if len(word) > 1:
                self._by_last_but_one.setdefault(word[-2], []).append(tuple(word))

    def after(self, token_ids: Sequence[int]) -> list[int]:
        """Tokens that may not follow."""
        begun = self._by_last_but_one.get(token_ids[-1], ())
        return self._alone + [
            word[-1] for word in begun if tuple(token_ids[1 - len(word) :]) == word[:-1]
        ]
