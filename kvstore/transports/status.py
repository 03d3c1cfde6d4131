"""Errors of this project as gRPC status codes, and back: one table for every transport and service.

Several error classes share a code, so the message begins with the class's name
("SessionExpiredError: ..."). A peer that knows the name gets the very class back; any other client
reads a code and a sentence. When to retry after OverloadedError goes beside it, in milliseconds, as
trailing metadata.
"""

from __future__ import annotations

import logging
from math import ceil
from typing import Any, NoReturn

import grpc

from kvstore.core import errors

_LOG = logging.getLogger(__name__)

OK = 0

RETRY_AFTER = "retry-after-ms"

_CODES: dict[type[errors.KVStoreError], grpc.StatusCode] = {
    errors.KVStoreError: grpc.StatusCode.UNKNOWN,
    errors.InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ConfigurationError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LayoutMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.IdentityMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.SessionExpiredError: grpc.StatusCode.NOT_FOUND,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.ReservationExpiredError: grpc.StatusCode.ABORTED,
    errors.LeaseExpiredError: grpc.StatusCode.ABORTED,
    errors.ResourceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QuotaExceededError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.ChecksumError: grpc.StatusCode.DATA_LOSS,
    errors.ProtocolError: grpc.StatusCode.INTERNAL,
}

_CLASSES = {cls.__name__: cls for cls in _CODES}

_DEFAULTS: dict[int, type[errors.KVStoreError]] = {
    grpc.StatusCode.CANCELLED.value[0]: errors.UnavailableError,
    grpc.StatusCode.INVALID_ARGUMENT.value[0]: errors.InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND.value[0]: errors.NotFoundError,
    grpc.StatusCode.DEADLINE_EXCEEDED.value[0]: errors.DeadlineExceededError,
    grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]: errors.ResourceExhaustedError,
    grpc.StatusCode.OUT_OF_RANGE.value[0]: errors.InvalidArgumentError,
    grpc.StatusCode.UNIMPLEMENTED.value[0]: errors.ProtocolError,
    grpc.StatusCode.INTERNAL.value[0]: errors.ProtocolError,
    grpc.StatusCode.UNAVAILABLE.value[0]: errors.UnavailableError,
    grpc.StatusCode.UNAUTHENTICATED.value[0]: errors.UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED.value[0]: errors.PermissionDeniedError,
    grpc.StatusCode.DATA_LOSS.value[0]: errors.ChecksumError,
}
"""What a code means when the message does not begin with a class we know."""


def to_status(error: BaseException) -> tuple[int, str]:
    """(code, message) that tells a peer of `error`.

    For the boundary where a handler's error turns into an answer. Anything that is no KVStoreError
    is a defect: it is logged here with its traceback, and the peer learns only that there was one.
    """
    if isinstance(error, errors.KVStoreError):
        known = next(cls for cls in type(error).__mro__ if cls in _CODES)
        return _CODES[known].value[0], f"{known.__name__}: {error}"
    if isinstance(error, TimeoutError):
        return grpc.StatusCode.DEADLINE_EXCEEDED.value[0], "the deadline passed while serving"
    _LOG.error("defect while serving a call", exc_info=error)
    return grpc.StatusCode.INTERNAL.value[0], f"{type(error).__name__} while serving; see its log"


def from_status(code: int, message: str) -> errors.KVStoreError:
    """The error that a peer answered with."""
    name, separator, rest = message.partition(": ")
    if separator and name in _CLASSES:
        return _CLASSES[name](rest)
    return _DEFAULTS.get(code, errors.KVStoreError)(message or f"status code {code}")


def from_rpc_error(error: grpc.RpcError, peer: str) -> errors.KVStoreError:
    """What a failed gRPC call means. Raise the result `from error`; `peer` is named in it."""
    code, details = error.code(), error.details() or ""
    mapped = from_status(code.value[0], details)
    if isinstance(mapped, errors.OverloadedError):
        return errors.OverloadedError(str(mapped), retry_after_s=_retry_after_s(error))
    if type(mapped).__name__ == details.partition(": ")[0]:
        return mapped
    return type(mapped)(f"{peer}: {code.name.lower().replace('_', ' ')}: {details}")


def _retry_after_s(error: grpc.RpcError) -> float:
    """As told; a second where it was not, or cannot be read."""
    told = dict(error.trailing_metadata() or ()).get(RETRY_AFTER, "")
    return int(told) / 1000 if isinstance(told, str) and told.isdecimal() else 1.0


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: BaseException) -> NoReturn:
    """End a gRPC call with `error`'s status."""
    number, message = to_status(error)
    code = next(code for code in grpc.StatusCode if code.value[0] == number)
    metadata: tuple[tuple[str, str], ...] = ()
    if isinstance(error, errors.OverloadedError):
        metadata = ((RETRY_AFTER, str(ceil(error.retry_after_s * 1000))),)
    await context.abort(code, message, trailing_metadata=metadata)
    raise AssertionError("abort returns never")
