"""Pins arena memory for the GPU of this process, so that copies to and from it are asynchronous and
run at the speed of the bus."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any, Protocol

_LOG = logging.getLogger(__name__)

_REGION_BYTES = 64 << 20
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every GPU of the process


class CudaRuntime(Protocol):
    """Of `torch.cuda.cudart()`, what is needed here. Both return a status; 0 is success."""

    def cudaHostRegister(self, pointer: int, size: int, flags: int) -> Any: ...  # noqa: N802

    def cudaHostUnregister(self, pointer: int) -> Any: ...  # noqa: N802


class PinnedRegions:
    """Which parts of a mapping are pinned. A region is pinned when it is first used, for pinning
    commits its memory: an arena that is half empty stays so.

    Ownership: whoever makes it closes it, before the memory goes. Threads: any. Failure: what the
    driver refuses stays as it is, and works, slower; nothing is asked after the first refusal.
    Bound: the mapping. Cost: a dictionary lookup where the region is pinned already.
    """

    def __init__(self, runtime: CudaRuntime, address: int, length_bytes: int) -> None:
        self._runtime = runtime
        self._address = address
        self._length_bytes = length_bytes
        self._pinned = set[int]()
        self._refused = False
        self._lock = threading.Lock()

    def use(self, offset: int, length_bytes: int) -> None:
        """Pin the regions of [offset, offset + length)."""
        first = offset // _REGION_BYTES
        last = (offset + max(length_bytes, 1) - 1) // _REGION_BYTES
        for region in range(first, last + 1):
            if region not in self._pinned and not self._refused:
                self._pin(region)

    def _pin(self, region: int) -> None:
        with self._lock:
            if region in self._pinned or self._refused:
                return
            start = region * _REGION_BYTES
            size = min(_REGION_BYTES, self._length_bytes - start)
            status = self._runtime.cudaHostRegister(self._address + start, size, _PORTABLE)
            if int(status) == 0:
                self._pinned.add(region)
            else:
                self._refused = True
                _LOG.warning("CUDA does not pin arena memory (%s): copies are slower", status)

    def close(self) -> None:
        """Idempotent. The device must not use the memory any more."""
        with self._lock:
            self._refused = True
            for region in self._pinned:
                self._runtime.cudaHostUnregister(self._address + region * _REGION_BYTES)
            self._pinned.clear()


def cuda_runtime() -> CudaRuntime | None:
    """That of a process which uses CUDA, through the torch that it imported already; else None."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    runtime: CudaRuntime = torch.cuda.cudart()
    return runtime
