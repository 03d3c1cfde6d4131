from hypothesis import given
from hypothesis import strategies as st

from kvstore.eviction.base import EvictionPolicy
from kvstore.eviction.lru import LRU

KEYS = st.lists(st.integers(0, 12), max_size=6)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["insert", "touch", "remove"]), KEYS),
        st.tuples(st.just("victims"), st.tuples(st.integers(0, 5), st.sets(st.integers(0, 12)))),
    ),
    max_size=40,
)


class NaiveLRU:
    """Each key with the time of its last use; the tail of a batch is older than its head.

    A key that is not here yet has the time at which it was announced.
    """

    def __init__(self) -> None:
        self.used: dict[int, tuple[int, int]] = {}
        self.announced: dict[int, tuple[int, int]] = {}
        self.now = 0

    def insert(self, keys: list[int]) -> None:
        self.now += 1
        for place, key in enumerate(keys):
            self.used[key] = self.announced.pop(key, (self.now, -place))

    def touch(self, keys: list[int]) -> None:
        self.now += 1
        for place, key in enumerate(keys):
            times = self.used if key in self.used else self.announced
            times[key] = (self.now, -place)

    def remove(self, keys: list[int]) -> None:
        self.used = {key: used for key, used in self.used.items() if key not in keys}

    def victims(self, count: int, pinned: set[int]) -> list[int]:
        line = sorted((k for k in self.used if k not in pinned), key=self.used.__getitem__)
        self.remove(line[:count])
        return line[:count]


@given(OPERATIONS)
def test_agrees_with_the_naive_oracle(operations: list[tuple[str, tuple]]) -> None:
    policy: EvictionPolicy[int] = LRU()
    oracle = NaiveLRU()
    for name, argument in operations:
        if name == "victims":
            count, pinned = argument
            chosen = policy.victims(count, lambda key, pinned=pinned: key not in pinned)
            assert chosen == oracle.victims(count, pinned)
        else:
            getattr(policy, name)(iter(argument))
            getattr(oracle, name)(argument)
        assert len(policy) == len(oracle.used)
    assert policy.victims(100, lambda key: True) == oracle.victims(100, set())


def test_a_chain_loses_its_tail_first() -> None:
    policy = LRU[str]()
    policy.insert(["a1", "a2", "a3"])
    policy.insert(["b1", "b2"])
    policy.touch(["a1", "a2"])
    assert policy.victims(9, lambda key: True) == ["a3", "b2", "b1", "a2", "a1"]


def test_a_chain_written_in_parts_is_one_chain() -> None:
    """Parts are committed as they get full, while other chains come and go."""
    policy = LRU[str]()
    policy.touch(["a1", "a2", "a3", "a4"])
    policy.insert(["a1", "a2"])
    policy.touch(["b1"])
    policy.insert(["b1"])
    policy.insert(["a4"])
    policy.insert(["a3"])
    assert policy.victims(9, lambda key: True) == ["a4", "a3", "a2", "a1", "b1"]


def test_what_is_passed_over_keeps_its_place() -> None:
    policy = LRU[str]()
    for key in "abc":
        policy.insert([key])
    assert policy.victims(1, lambda key: key != "a") == ["b"]
    assert policy.victims(2, lambda key: True) == ["a", "c"]
    assert len(policy) == 0


def test_chains_that_are_announced_but_never_come_are_forgotten() -> None:
    policy = LRU[int]()
    for start in range(0, 200_000, 1000):
        policy.touch(range(start, start + 1000))
    assert len(policy) == 0
    assert len(policy._awaited) == 65536
    assert len(policy._line) <= 66
