"""The small parts around an engine, each alone."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from kvstore.client.sync import SyncClient
from kvstore.core.errors import ChecksumError, DeadlineExceededError, UnavailableError
from kvstore.core.ids import BlockHash, BlockKeys, LayoutFingerprint, RequestId
from kvstore.core.layout import KVLayout
from kvstore.testing.clock import ManualClock
from kvstore.tiers.base import TierKind
from kvstore.tiers.device.cache import DeviceCache
from kvstore.tiers.device.pool import BlockPool
from model_runner.engine_blocks import BlockTables
from model_runner.engine_output import EngineOutput, FirstOutput
from model_runner.inventory import RecordedInventory
from model_runner.kv_groups import KVGroup
from model_runner.output_stream import OutputStream, merge_tokens
from model_runner.sampling.logprobs import TokenLogprobs
from model_runner.store import BlockRun, Wanted
from model_runner.store_guard import StoreGuard
from model_runner.store_node import NodeStore
from model_runner.testing import window_group
from model_runner.types import FinishReason, Request, SamplingParams

_FIRST = FirstOutput({TierKind.HOST: 4}, 0.0, 0.1)
_HASHES = [BlockHash(bytes([i]) * 32) for i in range(8)]


def test_merging_keeps_every_token_and_what_is_told_with_it() -> None:
    outputs = [
        EngineOutput((1,), _FIRST),
        EngineOutput((2,)),
        EngineOutput((3,), finish_reason=FinishReason.LENGTH),
        EngineOutput(published=True),
    ]
    assert merge_tokens(outputs) == [
        EngineOutput((1, 2, 3), _FIRST, FinishReason.LENGTH),
        EngineOutput(published=True),
    ]


def test_merging_keeps_logprobs_with_their_tokens() -> None:
    told = [TokenLogprobs(-float(n), (n,), (-0.5,)) for n in range(4)]
    outputs = [
        EngineOutput(prompt_logprobs=(told[3],)),
        EngineOutput((0,), _FIRST, logprobs=(told[0],)),
        EngineOutput((1,), logprobs=(told[1],)),
        EngineOutput((2,), finish_reason=FinishReason.STOP, logprobs=(told[2],)),
    ]
    assert merge_tokens(outputs) == [
        EngineOutput(prompt_logprobs=(told[3],)),
        EngineOutput((0, 1, 2), _FIRST, FinishReason.STOP, logprobs=tuple(told[:3])),
    ]


async def test_output_stream_keeps_order_across_threads() -> None:
    stream = OutputStream()
    thread = threading.Thread(target=lambda: [stream.put(EngineOutput((n,))) for n in range(1_000)])
    thread.start()
    taken: list[int] = []
    while len(taken) < 1_000:
        taken += [token for output in await stream.take() for token in output.token_ids]
    thread.join()
    assert taken == list(range(1_000))


def test_guard_after_an_absent_node_only_writers_try_and_ever_less_often() -> None:
    clock = ManualClock()
    guard = StoreGuard(clock, retry_s=1.0)
    for delay_s in (1.0, 2.0, 4.0, 8.0, 16.0, 16.0):
        guard.failed("fetch", UnavailableError("gone"))
        clock.advance(delay_s * 0.99)
        assert (guard.may_read, guard.may_write) == (False, False)
        clock.advance(delay_s * 0.02)
        assert (guard.may_read, guard.may_write) == (False, True)
    guard.succeeded()
    assert (guard.may_read, guard.may_write) == (True, True)


def test_guard_a_bad_block_does_not_make_the_node_absent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = StoreGuard(ManualClock())
    for _ in range(3):
        guard.failed("fetch", ChecksumError("bad"))
    assert guard.may_read
    assert guard.errors == {"ChecksumError": 3}
    assert len(caplog.records) == 1


def test_inventory_is_what_was_told() -> None:
    layout = LayoutFingerprint(bytes(16))
    inventory = RecordedInventory(layout)
    inventory.stored(TierKind.DEVICE, BlockKeys(layout, _HASHES))
    inventory.removed(TierKind.DEVICE, BlockKeys(layout, _HASHES[2:]))
    assert inventory() == [(TierKind.DEVICE, BlockKeys(layout, _HASHES[:2]))]
    inventory.cleared(TierKind.DEVICE)
    assert inventory() == []


class AbsentNode:
    """Connecting to it takes until `answer` is set, and fails."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.attempts = 0

    def __call__(self) -> SyncClient:
        self.attempts += 1
        assert self.answer.wait(30)
        raise DeadlineExceededError("no answer")


def _store(connect: Any, clock: Any, **settings: Any) -> NodeStore:
    group = KVGroup(KVLayout(1, 1, 2, 2, "float32"), (0,))
    settings = {"deadline_s": 1.0, "max_pending_blocks": 4} | settings
    cache = DeviceCache(group.layout, 8, "cpu")
    return NodeStore([group], [cache], connect, clock=clock, **settings)


def test_store_skips_what_is_too_much_and_gives_up_the_rest() -> None:
    node = AbsentNode()
    store = _store(node, ManualClock())
    done: list[int] = []
    assert store.publish(
        [BlockRun(_HASHES[:6], range(6))], lambda: done.append(1)
    )  # alone: however large
    assert not store.publish([BlockRun(_HASHES[6:], [6, 7])], lambda: done.append(2))
    node.answer.set()
    store.close()
    statistics = store.statistics()
    assert done == [1]
    assert (statistics.published_blocks, statistics.skipped_blocks) == (0, 2)
    assert statistics.errors == {"DeadlineExceededError": 1}


def test_store_one_attempt_to_connect_is_enough_for_all_that_wait() -> None:
    node, answered = AbsentNode(), threading.Semaphore(0)
    store = _store(node, ManualClock())
    for number in range(6):
        store.fetch(
            Wanted([_HASHES[number]], [[number]], first_block=0, num_tokens=64),
            lambda tiers: answered.release(),
        )
    node.answer.set()
    for _ in range(6):
        assert answered.acquire(timeout=30)
    store.close()
    assert node.attempts == 1
    assert store.statistics().missed_blocks == 6


def test_block_tables_preempt_one_whose_blocks_were_named_after_anothers() -> None:
    """Two computed the same blocks; the names went to the first, and with its blocks. What the
    second one gives to the store are its own."""
    pool = BlockPool(5)
    blocks = BlockTables([window_group(None, 4)], [pool], asks_store=True)
    first, second = (
        Request(RequestId(name), list(range(8)), 8, SamplingParams(), identity_root=bytes(32))
        for name in "ab"
    )
    for one in (first, second):
        assert blocks.admit(one)
        blocks.loaded(one, [])
    for one in (first, second):
        one.num_computed = 8
        blocks.give_back(blocks.complete(one))
    blocks.release(first)
    pool.release(pool.allocate(pool.num_free))
    own = list(second.block_tables[0].block_ids)
    blocks.preempt(second)
    ((run,),) = blocks.take_preempted()
    assert list(run.block_ids) == own
    assert blocks.num_leaving == 2
    blocks.left([run])
    assert (blocks.num_leaving, pool.num_free) == (0, 5)
