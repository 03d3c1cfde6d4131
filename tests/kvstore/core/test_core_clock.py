import pytest

from kvstore.core.ports import Clock
from kvstore.testing.clock import ManualClock


def test_moves_only_when_told_to() -> None:
    manual = ManualClock(5.0)
    clock: Clock = manual
    assert (clock(), clock()) == (5.0, 5.0)
    manual.advance(2.5)
    assert clock() == 7.5


def test_never_goes_back() -> None:
    with pytest.raises(AssertionError, match="does not go back"):
        ManualClock().advance(-1)
