"""Results of common operations on the meta device, which has shapes but no values.

Torch's own kernels for it are Python functions. The first use of some of them imports `torch._dynamo`, which takes a
second, or SymPy, which takes a quarter of one, and each takes longer than what is below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


Result = Tensor | tuple[Tensor, ...] | None
"""The tensors that an operation returns; None: not known."""


def result_on_meta(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Result:
    """The result of an operation on tensors of the meta device; None if it is not among those that are known.

    Args:
        operation: the overload of an ATen operation, as dispatch modes get it.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """
    name = _known_name(operation)
    if name is None:
        return None
    if name == "arange":
        return _range(args, kwargs)
    tensors = list(args[0]) if name == "cat" else [each for each in args if isinstance(each, Tensor)]
    if not tensors or not all(each.is_meta for each in tensors) or kwargs.get("out") is not None:
        return None
    if name in OF_ARGUMENTS:
        return OF_ARGUMENTS[name](*args, **kwargs)
    first, dtype = tensors[0], kwargs.get("dtype")
    if name.endswith("_like") or (name == "cumsum" and dtype is None):
        return _empty(first.shape, dtype or first.dtype)
    if name in REDUCTIONS and first.is_floating_point() and all(isinstance(each, list | bool) for each in args[1:]):
        return _empty(_without(first.shape, *args[1:]), dtype or first.dtype)
    if name in REDUCTIONS or name == "cumsum" or dtype is not None:
        return None
    return first if name.endswith("_") else _elementwise(name, args, tensors)


@lru_cache(maxsize=1024)
def _known_name(operation: Any) -> str | None:
    """The name of an operation whose results may be known."""
    name: str = operation._schema.name.removeprefix("aten::")
    if name in REDUCTIONS or name in OF_ARGUMENTS or name in ("arange", "cumsum") or name.endswith("_like"):
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


def _range(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """`torch.arange` of integers: of an end, of a start and an end, or of those and a step."""
    device = kwargs.get("device")
    if device is None or torch.device(device) != META or not all(isinstance(each, int) for each in args):
        return None
    size = len(range(*args))
    return _empty((size,), kwargs.get("dtype") or torch.int64)


def _without(shape: Sequence[int], dims: Sequence[int] = (), keepdim: bool = False) -> Sequence[int]:
    """A shape without the dims over which it is reduced; without any, all are."""
    reduced = {dim % len(shape) for dim in dims or range(len(shape))}
    return [1 if dim in reduced else size for dim, size in enumerate(shape) if keepdim or dim not in reduced]


# ------------------------------------------------------------------ operations that are known by their arguments


def _concatenated(tensors: Sequence[Tensor], dim: int = 0) -> Result:
    shape, dtype = list(tensors[0].shape), tensors[0].dtype
    if any(each.dim() != len(shape) or each.dtype != dtype for each in tensors):
        return None
    shape[dim] = sum(each.shape[dim] for each in tensors)
    return _empty(shape, dtype)


def _product(one: Tensor, other: Tensor) -> Result:
    return _empty((one.shape[0], other.shape[1]), one.dtype)


def _embedded(table: Tensor, indices: Tensor, *_: Any) -> Result:
    return _empty((*indices.shape, table.shape[1]), table.dtype)


def _gathered(x: Tensor, dim: int, index: Tensor, **_: Any) -> Result:
    return _empty(index.shape, x.dtype)


def _indexed(x: Tensor, indices: Sequence[Tensor | None]) -> Result:
    found = _first_dims(indices)
    if found is None:
        return None
    return _empty((*_broadcast([each.shape for each in found]), *x.shape[len(found) :]), x.dtype)


def _put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Result:
    return None if _first_dims(indices) is None else _empty(x.shape, x.dtype)


def _first_dims(indices: Sequence[Tensor | None]) -> list[Tensor] | None:
    """The indices of the first dims, if no other is indexed, and none by a mask."""
    found = [each for each in indices if each is not None and each.is_meta and each.dtype == torch.int64]
    return found if len(found) == len(indices) else None


def _rolled(x: Tensor, *_: Any) -> Result:
    return _empty(x.shape, x.dtype)


def _of_whole(gradient: Tensor, shape: Sequence[int], *_: int) -> Result:
    return _empty(shape, gradient.dtype)


def _of_largest(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Result:
    return _empty(() if dim is None else _without(x.shape, [dim], keepdim), torch.int64)


def _filled(x: Tensor, mask: Tensor, value: object) -> Result:
    return x


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Result:
    return _empty(x.shape, torch.float32 if half_to_float else x.dtype)


def _softmax_gradient(gradient: Tensor, output: Tensor, dim: int, input_dtype: torch.dtype) -> Result:
    return _empty(gradient.shape, input_dtype)


def _attended(query: Tensor, *others: Any, **options: Any) -> Result:
    """Outputs, and logarithms of the sums of exponentials [sequences, heads, tokens]."""
    n_sequences, n_heads, n_tokens, _ = query.shape
    dtype = torch.promote_types(query.dtype, torch.float32)
    return _empty_like(query), _empty((n_sequences, n_tokens, n_heads), dtype).transpose(1, 2)


def _attention_gradients(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Result:
    return tuple(
        torch.empty_permuted(each.shape, (0, 2, 1, 3), dtype=each.dtype, device=META) for each in (query, key, value)
    )


def _empty_like(x: Tensor) -> Tensor:
    """As `torch.empty_like`: its dims have the same order in memory."""
    strides = x.stride()
    order = sorted(range(x.dim()), key=lambda dim: -strides[dim])
    return torch.empty_permuted(x.shape, order, dtype=x.dtype, device=META)


OF_ARGUMENTS: Mapping[str, Callable[..., Result]] = {
    "argmax": _of_largest,
    "cat": _concatenated,
    "embedding": _embedded,
    "gather": _gathered,
    "index": _indexed,
    "index_put": _put,
    "masked_fill_": _filled,
    "mm": _product,
    "roll": _rolled,
    "select_backward": _of_whole,
    "slice_backward": _of_whole,
    "_log_softmax": _softmax,
    "_log_softmax_backward_data": _softmax_gradient,
    "_softmax": _softmax,
    "_softmax_backward_data": _softmax_gradient,
    "_scaled_dot_product_flash_attention_for_cpu": _attended,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_gradients,
}
"""Name of an operation -> its result, given its arguments."""
