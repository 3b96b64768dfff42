"""Copies a box of a parameter out of a view of the tensor that holds it; elements outside the box are not touched.

The dims of the view may be finer than the parameter's. With a parameter's rows interleaved in 2 groups of 3, rows 2 to
4 lie in the view [groups, rows in group, in] as the last row of the first group and the first two rows of the second:

    >>> [run.source for run in contiguous_runs((2, 3), 2, 5)]
    [(slice(0, 1, None), slice(2, 3, None)), (slice(1, 2, None), slice(0, 2, None))]
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from torch import Tensor

from reallm.model.sharding import Box, Shape


class SliceRead(NamedTuple):
    """A box of a parameter that was read."""

    tensor: Tensor
    """The box: a view of the source if its elements are contiguous there, else a copy."""
    bytes_read: int
    """Bytes of the source that were read, or that will be read with the view."""


class Run(NamedTuple):
    """Consecutive elements along one dim of a parameter that form one block in the finer dims of a view."""

    target: slice
    """Range in the box, along the parameter's dim."""
    source: tuple[slice, ...]
    """Ranges in the view, along the dims into which the parameter's dim is divided."""


def read_slice(view: Tensor, shape: Shape, box: Box) -> SliceRead:
    """Read a box of a parameter of shape `shape`, whose elements are the elements of `view` in row-major order.

    If the view's dims do not divide the parameter's dims, the whole view is read.
    """
    if not box.numel:
        return SliceRead(view.new_empty(box.shape), 0)
    dims_of = _divided_dims(tuple(view.shape), shape)
    if dims_of is None:
        return SliceRead(view.reshape(shape)[box.slices].contiguous(), view.nbytes)
    trailing = (0,) * (view.dim() - sum(map(len, dims_of)))  # dims of size 1 after the parameter's last
    runs_of = [
        list(contiguous_runs(dims, start, stop))
        for dims, start, stop in zip(dims_of, box.starts, box.stops, strict=True)
    ]
    n_bytes = box.numel * view.itemsize
    blocks = list(product(*runs_of))
    if len(blocks) == 1:
        return SliceRead(_read_block(view, blocks[0], trailing).reshape(box.shape).contiguous(), n_bytes)
    result = view.new_empty(box.shape)
    for block in blocks:
        target = result[tuple(run.target for run in block)]
        target.copy_(_read_block(view, block, trailing).reshape(target.shape))
    return SliceRead(result, n_bytes)


def contiguous_runs(dims: Sequence[int], start: int, stop: int) -> Iterator[Run]:
    """Elements `start` to `stop` (exclusive) of `dims` in row-major order, as the fewest rectangular blocks."""
    done = start
    for source in _blocks(dims, start, stop):
        n = math.prod(each.stop - each.start for each in source)
        yield Run(slice(done - start, done - start + n), source)
        done += n


def _blocks(dims: Sequence[int], start: int, stop: int) -> Iterator[tuple[slice, ...]]:
    if len(dims) < 2:
        yield (slice(start, stop),) * len(dims)
        return
    size = math.prod(dims[1:])
    while start < stop:
        first, begin = divmod(start, size)
        n_whole = (stop - start) // size
        if begin or not n_whole:  # a part of one item of the first dim
            end = min(stop - first * size, size)
            for rest in _blocks(dims[1:], begin, end):
                yield (slice(first, first + 1), *rest)
            start = first * size + end
        else:
            yield (slice(first, first + n_whole), *(slice(0, dim) for dim in dims[1:]))
            start += n_whole * size


def _divided_dims(view_shape: Shape, shape: Shape) -> list[Shape] | None:
    """The dims of the view into which each dim of `shape` is divided; None if they do not line up."""
    left, found = list(view_shape), []
    for size in shape:
        dims: list[int] = []
        while left and math.prod(dims) < size:
            dims.append(left.pop(0))
        if math.prod(dims) != size:
            return None
        found.append(tuple(dims))
    return found if all(dim == 1 for dim in left) else None


def _read_block(view: Tensor, block: Sequence[Run], trailing: Sequence[int]) -> Tensor:
    slices: list[slice | int] = [each for run in block for each in run.source]
    return view[(*slices, *trailing)]
