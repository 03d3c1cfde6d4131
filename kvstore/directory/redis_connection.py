"""One Redis server: its address, a bounded pool of connections, and its errors as ours."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from kvstore.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    UnavailableError,
)

_MAX_CONNECTIONS = 8
_CLOSE_S = 1.0

_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs"}
"""What the query of a URL may set: how TLS is checked, and nothing that would change answers."""

Call = Sequence[bytes | str | int]
"""A command and its arguments."""


class RedisConnection:
    """Sends pipelines within a deadline. One event loop; connects when first used, and again.

    `repr` and errors name the host, port and database, never user or password. It does not retry:
    its users know whether a call may be repeated, and when it is not worth it.
    """

    def __init__(self, url: str) -> None:
        """Raises ConfigurationError for a URL that cannot be one."""
        self.name = _check(url)
        self._pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_MAX_CONNECTIONS,
            timeout=None,  # every call has its own deadline
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,
        )
        self._redis = Redis(connection_pool=self._pool)

    async def pipeline(self, calls: Sequence[Call], *, deadline_s: float) -> list[Any]:
        """The answers, in order; other clients' commands may run in between.

        Raises DeadlineExceededError, UnavailableError. What was not answered may have been done.
        """
        with self._errors(deadline_s):
            async with asyncio.timeout(deadline_s), self._redis.pipeline(False) as pipeline:
                for call in calls:
                    pipeline.execute_command(*call)
                # Not raised by the library, which would put the whole command into the message.
                answers = await pipeline.execute(raise_on_error=False)
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            return answers

    async def close(self) -> None:
        """In bounded time. Idempotent."""
        with suppress(TimeoutError, OSError, exceptions.RedisError):
            async with asyncio.timeout(_CLOSE_S):  # TLS says goodbye, and a server may hang
                await self._pool.disconnect()

    @contextmanager
    def _errors(self, deadline_s: float) -> Iterator[None]:
        try:
            yield
        except (TimeoutError, exceptions.TimeoutError) as error:
            raise DeadlineExceededError(
                f"{self.name}: no answer within {deadline_s:g} s; see whether it is overloaded"
            ) from error
        except (OSError, exceptions.ConnectionError) as error:
            raise UnavailableError(
                f"{self.name}: {error}; see that it runs and that address and password are right"
            ) from error
        except exceptions.RedisError as error:
            raise UnavailableError(f"{self.name} refuses: {error}") from error

    def __repr__(self) -> str:
        return f"RedisConnection({self.name})"


def _check(url: str) -> str:
    """The server's name for people. The URL itself is in no message: it may hold a password."""
    hint = "give redis://HOST:PORT/DB, or rediss:// for TLS"
    try:
        parts = urlsplit(url)
        host, port, database = parts.hostname, parts.port or 6379, parts.path.strip("/") or "0"
    except ValueError:
        raise ConfigurationError(f"node.directory is no URL; {hint}") from None
    if parts.scheme not in ("redis", "rediss") or not host or not database.isdecimal():
        raise ConfigurationError(f"node.directory: scheme, host or database is none; {hint}")
    for option in sorted(parse_qs(parts.query).keys() - _OPTIONS):
        raise ConfigurationError(
            f"node.directory: unknown option {option!r}; accepted are {', '.join(sorted(_OPTIONS))}"
        )
    return f"Redis at {host}:{port}/{database}"
