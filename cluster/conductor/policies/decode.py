"""The decode worker of policies that are about the prompt."""

from __future__ import annotations

import numpy as np

from cluster.conductor.decoding import Decoding


def calmest(decode: Decoding) -> int:
    """Where the next token comes soonest, among those with room for the sequence."""
    return int(np.lexsort((decode.sequences, decode.itl_s, ~decode.fits))[0])
