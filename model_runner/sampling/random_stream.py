"""Random numbers that belong to places in a sequence, not to the order of asking."""

from __future__ import annotations

import hashlib

from kvstore.core.encoding import encode_fields

_DOMAIN = "kvstore.sample.v1"
_CHOICE_DOMAIN = "kvstore.choice.v1"


class RandomStream:
    """One number for each position of one sequence. Immutable.

    Counter-based: a number depends on (seed, position) alone, so that a stream goes on at any
    worker, after any preemption, in any batch, without a state to hand over.
    """

    __slots__ = ("_hash",)

    def __init__(self, seed: int) -> None:
        self._hash = hashlib.sha256(encode_fields(_DOMAIN, seed))

    def at(self, position: int) -> float:
        """In [0, 1), with 53 random bits."""
        content = b"%d" % position
        digest = self._hash.copy()
        digest.update(b"i%b%b" % (len(content).to_bytes(8, "little"), content))
        return (int.from_bytes(digest.digest()[:8], "little") >> 11) / 2**53


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of several samples of a prompt. The first one has the prompt's own seed: it
    is what a request for one sample gets."""
    if choice == 0:
        return seed
    digest = hashlib.sha256(encode_fields(_CHOICE_DOMAIN, seed, choice)).digest()
    return int.from_bytes(digest[:8], "little")
