"""A layout means the same to a node as to the client that told it."""

from __future__ import annotations

import pytest

from kvstore.client.connection import _layout_message
from kvstore.core.errors import InvalidArgumentError
from kvstore.core.layout import KVLayout
from kvstore.node.validation import check_layouts
from kvstore.wire.v1 import block_pb2

WHOLE = KVLayout(2, 4, 8, 16, "float32")
GROUP = KVLayout(2, 4, 8, 16, "float32", layers=(1, 5))
LAYOUTS = [WHOLE, WHOLE.shard(1, 2), GROUP, GROUP.shard(1, 2)]


def test_layouts_cross_the_wire_unchanged() -> None:
    messages = [_layout_message(layout).SerializeToString() for layout in LAYOUTS]
    received = [block_pb2.KVLayout.FromString(message) for message in messages]
    assert check_layouts(received, max_block_bytes=1 << 20) == LAYOUTS


def test_layouts_with_layers_that_are_none_are_refused() -> None:
    message = _layout_message(GROUP)
    message.layers[:] = [5, 1]
    with pytest.raises(InvalidArgumentError, match="layers must be 2 of the model's"):
        check_layouts([message], max_block_bytes=1 << 20)
