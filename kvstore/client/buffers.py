"""What callers may pass as the memory of blocks: anything with the buffer protocol, numpy arrays,
CPU tensors of torch, other arrays through DLPack; a list with one for each key, or all of them
stacked in one array [n, ...]. Never copied."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from kvstore.core.errors import InvalidArgumentError

Buffer: TypeAlias = Any
"""No type of Python's says "buffer or DLPack"; what else is passed is an InvalidArgumentError."""
Buffers: TypeAlias = Any
"""A sequence of `Buffer`, or one that is stacked."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a typed array of one block must be. Plain bytes may have any shape."""

    dtype: str
    shape: tuple[int, ...]


def readable(name: str, data: Buffers, count: int, expected: Expected | None) -> list[memoryview]:
    """The bytes of each of `count` blocks. Raises InvalidArgumentError naming `name`."""
    views = _each(name, data, count, expected)
    for i, view in enumerate(views):
        if not view.nbytes:
            raise InvalidArgumentError(f"{name}[{i}] must not be empty")
    return views


def writable(name: str, data: Buffers, count: int, expected: Expected | None) -> list[memoryview]:
    """The same, to be written to."""
    views = _each(name, data, count, expected)
    for i, view in enumerate(views):
        if view.readonly:
            raise InvalidArgumentError(f"{name}[{i}] is read-only; give memory that can be written")
    return views


def byte_view(name: str, data: Buffer, expected: Expected | None = None) -> memoryview:
    """The bytes of one contiguous buffer, not copied. Raises InvalidArgumentError."""
    if type(data) is memoryview and data.format == "B" and data.ndim == 1:
        return _contiguous(name, data)
    if _is_tensor(data):
        return _tensor_bytes(name, data, expected)
    if isinstance(data, np.ndarray):
        if not data.flags.c_contiguous:
            raise _scattered(name, "numpy.ascontiguousarray")
        _check_type(name, data.dtype.name if data.dtype.kind == "f" else None, data.shape, expected)
        return data.reshape(-1).view(np.uint8).data
    return _foreign_bytes(name, data, expected)


def _each(name: str, data: Buffers, count: int, expected: Expected | None) -> list[memoryview]:
    if isinstance(data, list | tuple):
        if len(data) != count:
            raise InvalidArgumentError(f"{name}: {len(data)} buffers for {count} keys")
        if all(map(_is_plain, data)):
            return list(data)
        return [byte_view(f"{name}[{i}]", item, expected) for i, item in enumerate(data)]
    return _stacked(name, data, count, expected)


def _is_plain(item: object) -> bool:
    return type(item) is memoryview and item.format == "B" and item.ndim == 1 and item.c_contiguous


def _stacked(name: str, data: Buffer, count: int, expected: Expected | None) -> list[memoryview]:
    shape = tuple(data.shape) if hasattr(data, "shape") else ()
    if len(shape) < 2 or shape[0] != count:
        raise InvalidArgumentError(
            f"{name}: give a list with a buffer for each of the {count} keys, or one array "
            f"[{count}, ...]; got {type(data).__name__} of shape {list(shape)}"
        )
    if expected is not None:
        expected = Expected(expected.dtype, (count, *expected.shape))
    view = byte_view(name, data, expected)
    step = view.nbytes // count if count else 0
    return [view[i * step : (i + 1) * step] for i in range(count)]


def _is_tensor(data: object) -> bool:
    torch = sys.modules.get("torch")  # if it was never imported, this is none of its tensors
    return torch is not None and isinstance(data, torch.Tensor)


def _tensor_bytes(name: str, tensor: Any, expected: Expected | None) -> memoryview:
    import torch

    if tensor.device.type != "cpu":
        raise InvalidArgumentError(
            f"{name} is on {tensor.device}; copy it to the CPU first (.cpu()), best into pinned "
            "memory"
        )
    if not tensor.is_contiguous():
        raise _scattered(name, ".contiguous()")
    dtype = str(tensor.dtype).removeprefix("torch.") if tensor.is_floating_point() else None
    _check_type(name, dtype, tuple(tensor.shape), expected)
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())


def _foreign_bytes(name: str, data: Any, expected: Expected | None) -> memoryview:
    try:
        view = memoryview(data)
    except TypeError as error:
        if hasattr(data, "__dlpack__"):
            return byte_view(name, np.from_dlpack(data), expected)
        raise InvalidArgumentError(
            f"{name}: {type(data).__name__} has no buffer; give bytes, an array or a tensor"
        ) from error
    return _contiguous(name, view).cast("B")


def _contiguous(name: str, view: memoryview) -> memoryview:
    if not view.c_contiguous:
        raise _scattered(name, "bytes() of it, or a contiguous copy")
    return view


def _scattered(name: str, remedy: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{name} must be contiguous memory; pass it through {remedy}")


def _check_type(
    name: str, dtype: str | None, shape: Iterable[int], expected: Expected | None
) -> None:
    """`dtype` None = plain bytes, of which the length alone counts."""
    if expected is None or dtype is None:
        return
    if dtype != expected.dtype:
        raise InvalidArgumentError(
            f"{name} has dtype {dtype}, and the layout {expected.dtype}; convert it, or connect "
            "with the layout that it has"
        )
    if (shape := tuple(shape)) not in (expected.shape, _flat(expected.shape)):
        raise InvalidArgumentError(
            f"{name} has shape {list(shape)}, and the layout needs {list(expected.shape)} "
            "([layer, 2, kv_head, token, head_dim]); reshape or permute it"
        )


def _flat(shape: Sequence[int]) -> tuple[int, ...]:
    return (int(np.prod(shape)),)
