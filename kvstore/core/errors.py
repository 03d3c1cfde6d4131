"""The one error tree. Every error says what happened and what to do about it.

A *miss* is not an error: reads answer data-or-miss. These are for what a caller did wrong or must
know of. Foreign exceptions are mapped to these at the boundary they come in by, with `raise ...
from error`.
"""

from __future__ import annotations


class KVStoreError(Exception):
    """Base of all errors of this project. Catch this one to treat the cache as absent."""


class InvalidArgumentError(KVStoreError, ValueError):
    """A value cannot be used; the message names the field and what it accepts. Correct the call."""


class ConfigurationError(InvalidArgumentError):
    """A setting, file or address cannot be used; the message names it. Correct the setting."""


class LayoutMismatchError(InvalidArgumentError):
    """Two parties disagree about the shape or type of a block. Serve one model revision and dtype
    per pool."""


class IdentityMismatchError(InvalidArgumentError):
    """Two workers of one model name would not compute the same KV. Give them the same weights and
    settings."""


class DeadlineExceededError(KVStoreError, TimeoutError):
    """No answer within the deadline. The caller may go on without the cache; nothing was lost."""


class UnavailableError(KVStoreError, ConnectionError):
    """The peer is not there. Check that it runs and that the address is right; retry later."""


class SessionExpiredError(KVStoreError):
    """The node no longer knows this session (it restarted, or nothing was heard for a lease time).
    Open a new one."""


class NotFoundError(KVStoreError):
    """What was asked for is not known, or not any more; the message says what it was."""


class ReservationExpiredError(KVStoreError):
    """The reservation ended before its commit; nothing became visible. Reserve again."""


class LeaseExpiredError(KVStoreError):
    """The right to read ended; the bytes may have been reused and must not be trusted. Acquire
    again."""


class ResourceExhaustedError(KVStoreError):
    """A bound was reached (bytes, queue, sessions); the message names which. Retry later or raise
    the bound."""


class QuotaExceededError(ResourceExhaustedError):
    """A tenant's bytes are used up. Raise `node.quotas` for it, or let blocks of its own go."""


class OverloadedError(ResourceExhaustedError):
    """The request could not be served as it asks to be, or not in time. Retry after
    `retry_after_s`, or ask for less."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnauthenticatedError(KVStoreError):
    """The peer asks for credentials and got none it knows. Give the right token, key or
    certificate."""


class PermissionDeniedError(KVStoreError):
    """The credentials are good, but not for this. Use those of the right tenant or role."""


class ChecksumError(KVStoreError):
    """Bytes are not those that were committed. The reader must treat the block as missed."""


class ProtocolError(KVStoreError):
    """A peer sent something that cannot be parsed. Check that both run the same version."""
