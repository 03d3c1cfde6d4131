import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kvstore.core.errors import InvalidArgumentError
from kvstore.tiers.host.allocator import SlabAllocator, class_bytes, default_slab_bytes

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SLAB = 256 * KIB
CAPACITY = 4 * SLAB


@given(st.integers(1, 1 << 34))
def test_classes_waste_at_most_an_eighth(length: int) -> None:
    size = class_bytes(length)
    assert size >= length
    assert size % 4096 == 0
    assert class_bytes(size) == size
    assert class_bytes(length + 1) >= size
    assert size - length < 4096 or size <= length * 1.125


def test_there_are_few_classes() -> None:
    sizes = {class_bytes(length) for length in range(4 * MIB, 8 * MIB, 4096)}
    assert len(sizes) <= 9


@given(st.integers(4096, 1 << 45))
def test_slabs_fill_the_range(capacity: int) -> None:
    slab = default_slab_bytes(capacity)
    count = capacity // slab
    assert slab % 4096 == 0
    assert 4096 <= slab <= capacity
    assert count * slab > capacity - count * 4096 - 4096, "no slab's worth is lost"
    assert slab <= max(128 * MIB, 8 * MIB)


@pytest.mark.parametrize(("capacity", "slabs"), [(16 * MIB, 4), (GIB, 16), (100 * GIB, 1600)])
def test_number_of_slabs(capacity: int, slabs: int) -> None:
    assert capacity // default_slab_bytes(capacity) == slabs


def test_a_block_larger_than_a_slab_is_refused_by_name() -> None:
    allocator = SlabAllocator[int](CAPACITY, SLAB)
    allocator.check_fits(SLAB)
    with pytest.raises(InvalidArgumentError, match=f"{SLAB + 1} bytes .* slab of {SLAB} bytes"):
        allocator.check_fits(SLAB + 1)


def test_freeing_everything_gives_the_range_to_any_other_class() -> None:
    allocator = SlabAllocator[int](CAPACITY, SLAB)
    for length in (4096, SLAB, 40_000, 100_000, 8192):
        offsets = []
        while (offset := allocator.allocate(length, len(offsets))) is not None:
            offsets.append(offset)
        assert len(offsets) == CAPACITY // SLAB * (SLAB // class_bytes(length))
        assert allocator.used_bytes == len(offsets) * class_bytes(length)
        for offset in offsets:
            allocator.free(offset)
        assert allocator.used_bytes == 0


def test_slots_cannot_be_freed_twice() -> None:
    allocator = SlabAllocator[int](CAPACITY, SLAB)
    first = allocator.allocate(4096, 1)
    second = allocator.allocate(4096, 2)
    assert first is not None
    assert second is not None
    allocator.free(first)
    with pytest.raises(AssertionError, match="free"):
        allocator.free(first)
    with pytest.raises(AssertionError, match="begins"):
        allocator.free(second + 1)


class AllocatorMachine(RuleBasedStateMachine):
    """Random allocations and frees against a plain set of intervals."""

    slots = Bundle("slots")

    def __init__(self) -> None:
        super().__init__()
        self.allocator = SlabAllocator[int](CAPACITY, SLAB)
        self.live: dict[int, tuple[int, int]] = {}
        self.count = 0

    @rule(target=slots, length=st.sampled_from([1, 4096, 5000, 40_000, 66_000, 200_000, SLAB]))
    def allocate(self, length: int) -> int | None:
        self.count += 1
        offset = self.allocator.allocate(length, self.count)
        if offset is None:
            assert self.live, "an empty range has room"
            return None
        size = min(class_bytes(length), SLAB)
        assert offset % 4096 == 0
        assert offset >= 0
        assert offset + size <= CAPACITY
        for other, (other_size, _) in self.live.items():
            assert offset + size <= other or other + other_size <= offset
        self.live[offset] = (size, self.count)
        return offset

    @rule(offset=consumes(slots))
    def free(self, offset: int | None) -> None:
        if offset is not None:
            size, owner = self.live.pop(offset)
            assert owner in self.allocator.neighbours(offset)
            assert self.allocator.same_class(offset, size)
            self.allocator.free(offset)

    @invariant()
    def used_is_what_is_live(self) -> None:
        assert self.allocator.used_bytes == sum(size for size, _ in self.live.values())

    def teardown(self) -> None:
        for offset in self.live:
            self.allocator.free(offset)
        for slab in range(CAPACITY // SLAB):
            assert self.allocator.allocate(SLAB, slab) is not None, "all of it is usable again"


TestAllocatorMachine = AllocatorMachine.TestCase
TestAllocatorMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
