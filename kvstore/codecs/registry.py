"""Codecs by the name that a setting gives them, and by the id that a header does."""

from __future__ import annotations

from collections.abc import Mapping

from kvstore.codecs.affine import Int4
from kvstore.codecs.base import Codec, CodecId, CodecName
from kvstore.codecs.kivi import Kivi2
from kvstore.codecs.raw import Raw
from kvstore.codecs.symmetric import Fp8, Int8

_ALL: tuple[Codec, ...] = (Raw(), Fp8(), Int8(), Int4(), Kivi2())

CODECS: Mapping[CodecName, Codec] = {codec.name: codec for codec in _ALL}
CODECS_BY_ID: Mapping[CodecId, Codec] = {codec.id: codec for codec in _ALL}
