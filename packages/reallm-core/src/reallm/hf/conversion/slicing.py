"""A part of a parameter, taken out of a view of the tensor that holds it: what is not in the part is not touched.

The dims of the view may be finer than ours. With rows dealt out in 2 groups of 3, rows 2 to 5 of ours lie in the view
[groups, rows in group, in] as the last row of the first group and the first two of the second:

    >>> [run.slices for run in runs((2, 3), 2, 5)]
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
    """A part of a parameter."""

    tensor: Tensor
    """A view of where it was taken from, if its numbers lie together there."""
    bytes_read: int
    """Of what was looked at, or will be when a view is."""


class Run(NamedTuple):
    """Consecutive elements along one dim of ours that are a block of the finer dims of a view."""

    place: slice
    """In the part."""
    slices: tuple[slice, ...]
    """In the view."""


def read_slice(view: Tensor, shape: Shape, box: Box) -> SliceRead:
    """The part `box` of a parameter of the shape `shape`, of which `view` has the numbers in the right order.

    A view whose dims are not those of ours, divided further, is read whole.
    """
    if not box.numel:
        return SliceRead(view.new_empty(box.shape), 0)
    finer = _finer_dims(tuple(view.shape), shape)
    if finer is None:
        return SliceRead(view.reshape(shape)[box.slices].contiguous(), view.nbytes)
    ones = (0,) * (view.dim() - sum(map(len, finer)))  # dims of a single element after the last of ours
    all_runs = [list(runs(dims, start, stop)) for dims, start, stop in zip(finer, box.starts, box.stops, strict=True)]
    n_bytes = box.numel * view.itemsize
    blocks = list(product(*all_runs))
    if len(blocks) == 1:
        return SliceRead(_block(view, blocks[0], ones).reshape(box.shape).contiguous(), n_bytes)
    part = view.new_empty(box.shape)
    for block in blocks:
        target = part[tuple(run.place for run in block)]
        target.copy_(_block(view, block, ones).reshape(target.shape))
    return SliceRead(part, n_bytes)


def runs(dims: Sequence[int], start: int, stop: int) -> Iterator[Run]:
    """The elements from `start` up to `stop` of dims in row-major order, in the fewest blocks."""
    done = start
    for index in _blocks(dims, start, stop):
        n = math.prod(each.stop - each.start for each in index)
        yield Run(slice(done - start, done - start + n), index)
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


def _finer_dims(finer: Shape, shape: Shape) -> list[Shape] | None:
    """Which dims of `finer` each dim of `shape` is divided into; None if it is not."""
    left, found = list(finer), []
    for size in shape:
        dims: list[int] = []
        while left and math.prod(dims) < size:
            dims.append(left.pop(0))
        if math.prod(dims) != size:
            return None
        found.append(tuple(dims))
    return found if all(dim == 1 for dim in left) else None


def _block(view: Tensor, block: Sequence[Run], ones: tuple[int, ...]) -> Tensor:
    slices: list[slice | int] = [each for run in block for each in run.slices]
    return view[(*slices, *ones)]
