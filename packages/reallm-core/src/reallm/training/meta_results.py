"""Results of common operations on the meta device, which has shapes but no values.

Torch's own kernels for it are Python functions. The first use of some of them imports `torch._dynamo`, which takes a
second, and each takes longer than what is below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

META = torch.device("meta")
COMPARISONS = frozenset(["eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_not", "isnan"])
"""Elementwise operations whose results are bool."""
OF_INTEGERS = frozenset(
    [
        *("add", "sub", "rsub", "mul", "neg", "abs", "remainder", "maximum", "minimum"),
        *("clamp", "clamp_min", "clamp_max", "where", "masked_fill"),
        *("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not"),
    ]
)
"""Elementwise operations whose results are integers if their inputs are."""
REDUCTIONS = frozenset(("mean", "sum", "amax", "amin"))


def result_on_meta(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The result of an operation on tensors of the meta device; None if it is not among those that are known.

    Args:
        operation: the overload of an ATen operation, as dispatch modes get it.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """
    name = _known_name(operation)
    if name is None:
        return None
    tensors = list(args[0]) if name == "cat" else [each for each in args if isinstance(each, Tensor)]
    if not tensors or not all(each.is_meta for each in tensors) or kwargs.get("out") is not None:
        return None
    first, dtype = tensors[0], kwargs.get("dtype")
    if name == "cat":
        return _concatenated(tensors, *args[1:])
    if name == "mm":
        return _empty((first.shape[0], tensors[1].shape[1]), first.dtype)
    if name.endswith("_like") or (name == "cumsum" and dtype is None):
        return _empty(first.shape, dtype or first.dtype)
    if name in REDUCTIONS and len(args) > 1 and isinstance(args[1], list) and first.is_floating_point():
        return _empty(_without(first.shape, *args[1:]), dtype or first.dtype)
    if name in REDUCTIONS or name == "cumsum" or dtype is not None:
        return None
    return first if name.endswith("_") else _elementwise(name, args, tensors)


@lru_cache(maxsize=1024)
def _known_name(operation: Any) -> str | None:
    """The name of an operation whose results may be known."""
    name: str = operation._schema.name.removeprefix("aten::")
    if name in REDUCTIONS or name in ("cat", "cumsum", "mm") or name.endswith("_like"):
        return name
    return name if torch.Tag.pointwise in operation.tags and not name.startswith("_") else None


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def _elementwise(name: str, args: Sequence[Any], tensors: Sequence[Tensor]) -> Tensor | None:
    shape = _broadcast([each.shape for each in tensors])
    if name in COMPARISONS:
        return _empty(shape, torch.bool)
    values = tensors[1:] if name == "where" else tensors
    dtypes = [each.dtype for each in values if each.dim()] or [each.dtype for each in values]
    dtype = dtypes[0]
    for other in dtypes[1:]:
        dtype = torch.promote_types(dtype, other)
    if not dtype.is_floating_point and (name not in OF_INTEGERS or any(isinstance(each, float) for each in args)):
        return None
    return _empty(shape, dtype)


def _broadcast(shapes: Sequence[Sequence[int]]) -> Sequence[int]:
    """As `torch.broadcast_shapes`, of shapes that fit each other."""
    if all(shape == shapes[0] for shape in shapes):
        return shapes[0]
    found = [1] * max(map(len, shapes))
    for shape in shapes:
        for dim, size in enumerate(reversed(shape), 1):
            found[-dim] = size if size != 1 else found[-dim]
    return found


def _concatenated(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    shape, dtype = list(tensors[0].shape), tensors[0].dtype
    if any(each.dim() != len(shape) or each.dtype != dtype for each in tensors):
        return None
    shape[dim] = sum(each.shape[dim] for each in tensors)
    return _empty(shape, dtype)


def _without(shape: Sequence[int], dims: Sequence[int], keepdim: bool = False) -> Sequence[int]:
    """A shape without the dims over which it is reduced; without any, all are."""
    reduced = {dim % len(shape) for dim in dims or range(len(shape))}
    return [1 if dim in reduced else size for dim, size in enumerate(shape) if keepdim or dim not in reduced]
