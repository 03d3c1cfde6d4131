"""Random damage to valid input of every parser; `make fuzz` searches with coverage feedback."""

from __future__ import annotations

from itertools import islice
from random import Random

import pytest

from kvstore.core.errors import ProtocolError
from kvstore.testing.fuzzing import Parser, damaged, parsers
from kvstore.testing.node_fuzzing import FuzzedNode

INPUTS = 2_000


@pytest.mark.parametrize("parser", parsers(), ids=lambda parser: parser.name)
def test_damaged_input_is_answered_or_refused(parser):
    for number, example in enumerate(parser.examples):
        parser.parse(example)  # the examples are good ones
        for data in islice(damaged(example, Random(number)), INPUTS):
            parser(data)


def test_a_node_answers_or_refuses_damaged_requests():
    with FuzzedNode() as node:
        parser = node.parser()
        for number, example in enumerate(parser.examples):
            for data in islice(damaged(example, Random(number)), INPUTS // 10):
                parser(data)


def test_a_defect_is_not_passed_over():
    def broken(data: bytes) -> None:
        raise ProtocolError("refused") if data else IndexError("a defect")

    parser = Parser("broken", broken, [b"x"])
    parser(b"x")
    with pytest.raises(IndexError):
        parser(b"")
