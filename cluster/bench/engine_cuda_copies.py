"""`kvstore bench engine`: blocks between the device tier and host memory, beside plain copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from cluster.bench.alternate import best_rates
from cluster.bench.case import BenchOptions, Case, Skipped
from cluster.bench.engine_setup import BLOCK_SIZE_TOKENS, FULL, EngineSize
from kvstore.core.errors import KVStoreError
from kvstore.core.layout import KVLayout
from kvstore.tiers.device.cache import DeviceCache
from kvstore.tiers.host.arena import Arena

OUT, IN = "device_to_host_copy", "host_to_device_copy"
NO_CUDA = "no CUDA device here"
_NUM_BLOCKS = 2048
_GOAL = "ratio >= 0.85"


def engine_cuda_copies(options: BenchOptions, size: EngineSize = FULL) -> Iterator[Case | Skipped]:
    """Raises KVStoreError if bytes did not arrive."""
    if not options.wants(OUT, IN):
        return
    if torch.cuda.is_available():
        layout = KVLayout(
            num_layers=size.shape.num_layers,
            num_kv_heads=size.shape.num_kv_heads,
            head_dim=size.shape.hidden_size // size.shape.num_heads,
            block_size_tokens=BLOCK_SIZE_TOKENS,
            dtype="bfloat16",
        )
        yield from copies(options.folder, layout, _NUM_BLOCKS, "cuda")
    else:
        yield from (Skipped(name, NO_CUDA) for name in (OUT, IN))


def copies(folder: Path, layout: KVLayout, num_blocks: int, device: str) -> Iterator[Case]:
    """Scattered blocks to and from an arena, as a worker has them; in turns with one copy of as
    many bytes between the device and one piece of (pinned) memory."""
    cache = DeviceCache(layout, num_blocks, device)
    _fill(cache.tensor)
    arena = Arena(folder, num_blocks * layout.block_bytes)
    try:
        views = [
            arena.view(arena.data_offset + i * layout.block_bytes, layout.block_bytes)
            for i in range(num_blocks)
        ]
        yield from _measured(cache, views)
        del views
    finally:
        arena.close()


def _measured(cache: DeviceCache, views: Sequence[memoryview]) -> Iterator[Case]:
    ids = torch.randperm(cache.num_blocks, generator=torch.Generator().manual_seed(0)).tolist()
    plain = torch.empty(
        cache.tensor.shape, dtype=cache.tensor.dtype, pin_memory=cache.device.type == "cuda"
    )
    device = torch.empty_like(cache.tensor)
    before = cache.tensor.clone()
    works = {
        OUT: lambda: cache.export_blocks(ids, views),
        "plain out": _synchronous(cache, lambda: plain.copy_(cache.tensor, non_blocking=True)),
        IN: _synchronous(cache, lambda: cache.import_blocks(ids, views)),
        "plain in": _synchronous(cache, lambda: device.copy_(plain, non_blocking=True)),
    }
    gigabytes = cache.num_blocks * cache.layout.block_bytes / 1e9
    rates = best_rates(gigabytes, works)
    cache.tensor.zero_()
    cache.import_blocks(ids, views)
    if not torch.equal(cache.tensor, before):
        raise KVStoreError("bench engine: blocks that were copied out and in are not the same")
    note = f"{cache.num_blocks} scattered blocks of {cache.layout.block_bytes} bytes; best of each"
    for name, ceiling in ((OUT, "plain out"), (IN, "plain in")):
        against = "one pinned copy of the same bytes"
        yield Case(name, rates[name], "GB/s", rates[ceiling], against, note, goal=_GOAL)


def _synchronous(cache: DeviceCache, work: Callable[[], object]) -> Callable[[], None]:
    """What is queued on the device counts when it is done."""

    def run() -> None:
        work()
        if cache.device.type == "cuda":
            torch.cuda.synchronize(cache.device)

    return run


def _fill(tensor: torch.Tensor) -> None:
    """With values that differ from block to block."""
    values = torch.arange(tensor.numel(), device=tensor.device) % 251
    tensor.copy_(values.view(tensor.shape))
