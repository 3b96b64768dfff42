"""Operations of `NamedArray` on one array, a torch tensor or a numpy array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from reallm.errors import DataError

Array = torch.Tensor | np.ndarray
Index: TypeAlias = int | slice | list[int] | Array


def is_array(value: object) -> bool:
    """Whether `value` is a torch tensor or a numpy array."""
    return isinstance(value, Array)


def describe(array: Array) -> str:
    """Dtype, shape and device: `"int64[17]"`, `"numpy float32[3, 2]"`, `"bfloat16[8] on cuda:0"`."""
    if isinstance(array, torch.Tensor):
        device = "" if array.device.type == "cpu" else f" on {array.device}"
        return f"{str(array.dtype).removeprefix('torch.')}{list(array.shape)}{device}"
    return f"numpy {array.dtype}{list(array.shape)}"


def equal(a: Array, b: Array) -> bool:
    """Whether kind, dtype, device, shape and values are the same; NaN equals NaN."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if (a.dtype, a.device, a.shape) != (b.dtype, b.device, b.shape):
            return False
        if a.is_floating_point() and a.dtype.itemsize == 1:  # float8 has no `==`; every value fits in float32
            a, b = a.float(), b.float()
        return bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    return False


def index(array: Array, at: Index) -> Array:
    """`array[at]` along dim 0, an array of the same kind."""
    if isinstance(at, tuple):
        raise TypeError("only dim 0 is indexed, by one index")
    if isinstance(array, torch.Tensor):
        return array[torch.as_tensor(at, device=array.device) if isinstance(at, np.ndarray) else at]
    return np.asarray(array[at.numpy(force=True) if isinstance(at, torch.Tensor) else at])


def concatenate(arrays: Sequence[Array]) -> Array:
    """Concatenate arrays along dim 0; a single array is returned unchanged.

    Raises:
        DataError: they differ in kind, dtype, device or in a size other than that of dim 0.
    """
    first = arrays[0]
    for i, other in enumerate(arrays):
        if _signature(other) != _signature(first):
            raise DataError(f"cannot join {describe(first)} with {describe(other)} (number {i})")
        if not other.shape:
            raise DataError("cannot join arrays without dimensions")
    if len(arrays) == 1:
        return first
    parts: Any = arrays
    return torch.cat(parts) if isinstance(first, torch.Tensor) else np.concatenate(parts)


def move(
    array: Array, devices: Sequence[torch.device | str], dtypes: Sequence[torch.dtype], non_blocking: bool
) -> Array:
    """Move to other devices, and cast to other dtypes if floating-point; numpy arrays stay in host memory."""
    if isinstance(array, torch.Tensor):
        for target in [*devices, *(dtypes if array.is_floating_point() else ())]:
            array = array.to(target, non_blocking=non_blocking)
        return array
    for dtype in dtypes if array.dtype.kind == "f" else ():
        array = array.astype(_numpy_dtype(dtype), copy=False)
    return array


def _signature(array: Array) -> tuple[object, ...]:
    if isinstance(array, torch.Tensor):
        return "torch", array.dtype, array.device, array.shape[1:]
    return "numpy", array.dtype, array.shape[1:]


def _numpy_dtype(dtype: torch.dtype) -> np.dtype:
    try:
        return torch.empty(0, dtype=dtype).numpy().dtype
    except TypeError:
        raise DataError(f"numpy has no {str(dtype).removeprefix('torch.')}") from None
