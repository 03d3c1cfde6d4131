"""The client without `await`, and the store inside the caller's process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import kvstore
from kvstore.client.sync import SyncClient
from kvstore.core.errors import ConfigurationError, UnavailableError
from kvstore.tiers.base import MissReason, TierKind

from .conftest import buffers, contents, make_keys

LENGTH = 300_000


def test_an_embedded_store_keeps_its_blocks_on_disk(tmp_path):
    keys = make_keys(*range(8))
    data, into = contents(keys, LENGTH), buffers(8, LENGTH)
    with kvstore.open(tmp_path / "cache", host="16MiB", disk="64MiB") as store:
        assert store.put(keys, data) == list(range(8))
        assert store.get(keys, into) == {}
        assert into == data
    with kvstore.open(tmp_path / "cache", host="16MiB", disk="64MiB") as store:
        assert store.match(keys).tiers == [TierKind.DISK] * 8
        into = buffers(8, LENGTH)
        assert store.get(keys, into, deadline_s=10) == {}
        assert into == data


def test_contexts_free_what_they_hold_and_close_leaves_no_thread():
    before = set(threading.enumerate())
    with kvstore.open(host="16MiB") as store:
        keys = make_keys("a", "b")
        with store.reserve(keys, 1000) as reservation:
            reservation.blocks[0].view[:] = bytes(1000)
            reservation.commit(reservation.blocks[:1])
        with store.acquire(keys) as lease:
            assert lease.prefix_length == 1
            assert lease.misses == {1: MissReason.NEVER_STORED}
            lease.copy_into(lease.found[0], buffers(1, 1000)[0])
            lease.verify(lease.found[0])
        statistics = store.statistics()
        assert (statistics.leases, statistics.reservations) == (0, 0)
    store.close()
    assert set(threading.enumerate()) == before


def test_many_threads_share_one_client():
    def work(number):
        keys = make_keys(*range(number, number + 4))
        data, into = contents(keys, 50_000), buffers(4, 50_000)
        for _ in range(10):
            store.put(keys, data, deadline_s=10)
            for i in set(range(4)) - set(store.get(keys, into, deadline_s=10)):
                assert into[i] == data[i]
        return True

    with kvstore.open(host="16MiB") as store, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


async def test_a_sync_client_talks_to_a_node(make_node):
    node = await make_node()
    before = set(threading.enumerate())

    def work():
        with SyncClient.connect(node.zmq_endpoint) as client:
            keys = make_keys("a")
            client.put(keys, contents(keys, LENGTH))
            into = buffers(1, LENGTH)
            assert client.get(keys, into) == {}
            return into == contents(keys, LENGTH)

    assert await asyncio.to_thread(work)
    with pytest.raises(UnavailableError):
        await asyncio.to_thread(SyncClient.connect, "tcp://127.0.0.1:1", deadline_s=0.2)
    new = set(threading.enumerate()) - before
    assert not [thread for thread in new if "kvstore-client" in thread.name]


@pytest.mark.parametrize(
    ("path", "settings", "words"),
    [
        (None, {"host": "much"}, "host"),
        (None, {"disk": "1GiB"}, "disk_path"),
        ("/proc/no", {"disk": "1GiB"}, "/proc/no"),
    ],
)
def test_settings_that_cannot_be_used_are_configuration_errors(path, settings, words):
    before = threading.active_count()
    with pytest.raises(ConfigurationError, match=words):
        kvstore.open(path, **settings)
    assert threading.active_count() == before


def test_importing_the_package_imports_nothing_heavy():
    script = "import sys, kvstore; print(*{'torch', 'grpc', 'zmq', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == ""
