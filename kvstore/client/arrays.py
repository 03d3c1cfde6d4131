"""Blocks as arrays and tensors over the same memory. torch is imported when a tensor is asked
for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kvstore.core.errors import InvalidArgumentError, LayoutMismatchError
from kvstore.core.layout import DTYPE_BYTES, KVLayout

if TYPE_CHECKING:
    import torch


def as_numpy(view: memoryview, layout: KVLayout) -> npt.NDArray[Any]:
    """`[layer, 2, kv_head, token, head_dim]` over `view`; writable if `view` is.

    Raises LayoutMismatchError for another length, InvalidArgumentError for a dtype that numpy has
    not got.
    """
    try:
        dtype = np.dtype(layout.dtype)
    except TypeError as error:
        raise InvalidArgumentError(
            f"layout.dtype: numpy has no {layout.dtype}; take .torch(layout), or the bytes"
        ) from error
    return np.frombuffer(_checked(view, layout), dtype).reshape(layout.shape)


def as_torch(view: memoryview, layout: KVLayout) -> torch.Tensor:
    """The same as a CPU tensor. torch knows no read-only tensors: do not write to one that was made
    of a found block; its memory is not writable through the client's own mapping, but here nothing
    stops it. Raises LayoutMismatchError."""
    import torch
    import torch.utils.dlpack

    flat = torch.utils.dlpack.from_dlpack(np.frombuffer(_checked(view, layout), np.uint8))
    tensor: torch.Tensor = flat.view(getattr(torch, layout.dtype)).reshape(layout.shape)
    return tensor


def as_items(view: memoryview, layout: KVLayout) -> npt.NDArray[Any]:
    """Elements as plain bits, to move them about whatever the dtype. Raises LayoutMismatchError."""
    dtype = np.dtype(f"u{DTYPE_BYTES[layout.dtype]}")
    return np.frombuffer(_checked(view, layout), dtype).reshape(layout.shape)


def _checked(view: memoryview, layout: KVLayout) -> memoryview:
    if view.nbytes != layout.block_bytes:
        raise LayoutMismatchError(
            f"layout: its blocks have {layout.block_bytes} bytes, and this one has {view.nbytes}; "
            "give the layout that the block was stored under"
        )
    return view
