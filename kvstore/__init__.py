"""An open distributed, disaggregated KV-cache store for LLM serving.

    import kvstore

    with kvstore.open("cache", host="4GiB", disk="50GiB") as store:
        store.put(keys, blocks)
        misses = store.get(keys, buffers)

See `kvstore.client` for stores that run as daemons, and `kvstore.core` for keys and layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvstore.client.verification import Verify
    from kvstore.core.layout import KVLayout
    from kvstore.embedded import EmbeddedStore

__all__ = ["open"]


def open(  # noqa: A001 - reads as kvstore.open
    path: str | Path | None = None,
    *,
    host: str | int = "1GiB",
    disk: str | int = 0,
    layouts: Sequence[KVLayout] = (),
    tenant: str = "",
    verify: Verify = "transfers",
) -> EmbeddedStore:
    """Run a store node inside this process, and return a client of it: a context manager.

    `path` is the folder of the disk tier; what it holds is there again the next time it is opened,
    by one process at a time. `host` and `disk` are sizes in bytes or like "4GiB"; disk 0 = no disk
    tier. `layouts` are those that will be written, or read in parts; none = any is written.
    `tenant` is whose blocks these are. `verify`: whether checksums of blocks read from memory are
    computed, see `kvstore.client.verification`. Raises ConfigurationError.
    """
    from kvstore.embedded import open_embedded

    return open_embedded(path, host, disk, layouts, tenant, verify)
