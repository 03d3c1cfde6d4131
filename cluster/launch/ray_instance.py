"""A private Ray on this host, or a connection to one that runs already."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
from pathlib import Path

import ray

from cluster.launch.processes import descendants, end
from kvstore.core.errors import ConfigurationError, KVStoreError, UnavailableError

# Ray's object store holds nothing of ours: no KV block goes through Ray. This is its least size.
OBJECT_STORE_BYTES = 80 << 20
END_GRACE_S = 5.0

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Devices are chosen by `device` in the settings, so Ray must not hide them from our actors.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class RayInstance:
    """`start` and `stop` must be called in the main thread: Ray installs signal handlers."""

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._folder: Path | None = None
        self._before = descendants()

    def start(self) -> None:
        """Blocks for some seconds. Raises UnavailableError if there is no Ray at the address."""
        if ray.is_initialized():
            raise ConfigurationError("Ray is in use in this process already: start one cluster")
        os.environ.update(ENVIRONMENT)
        # Ray puts its own handlers in place; ours, which stop the cluster, come back afterwards.
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._connect() if self._address else self._launch()
        except (ConnectionError, ValueError) as error:
            raise UnavailableError(f"no Ray at {self._address}: {error}") from error
        except (RuntimeError, TimeoutError) as error:
            raise KVStoreError(f"Ray did not start: {error}") from error
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _connect(self) -> None:
        ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)

    def _launch(self) -> None:
        # The path of Ray's sockets must stay below 108 bytes, whatever TMPDIR is.
        prefix = f"kvstore-ray-{os.getpid()}-"
        self._folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
        ray.init(
            address="local",  # whatever RAY_ADDRESS says
            num_cpus=1,
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(self._folder),
        )

    async def stop(self) -> None:
        """Leave Ray. A private one ends with all its processes and files. Idempotent."""
        started = descendants() - self._before if self._folder else frozenset()
        ray.shutdown()
        await end(started, END_GRACE_S)
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
