"""Products by oneDNN, through the private operators of torch that `torch.compile` also uses on CPUs, and their probe.

Unlike those of MKL, rows of oneDNN's products do not depend on the number of rows, except that a single row has a code
path of its own; it is therefore computed together with copies of itself.

Shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

import os
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from reallm.machine_errors import raise_shortage

COPIES, PREPACKED_COPIES = 2, 4
"""Number of rows that a product has at least. With a prepacked weight four rows take less time than one to three."""
TOLERANCE = 1e-5
"""Relative difference from a float64 product that the probe allows; float32 sums of 1,000 numbers are within 1e-6."""
CACHE_CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Environment variables by which oneDNN, and torch's layer above it, limit what they keep of the shapes of products."""
SHAPES_KEPT = 128
"""Number of shapes for which compiled code is kept. It is half a megabyte for each, and another number of rows is
another shape: with the libraries' own limit of 1,024, a process would grow by half a gigabyte within some 100 steps. To
compile a shape again takes half a millisecond."""
for _name in CACHE_CAPACITIES:  # read at the first product of any kind, such as one in bfloat16 by `F.linear`
    os.environ.setdefault(_name, str(SHAPES_KEPT))
SMALL_SHAPES = ((7, 5), (64, 64), (192, 96))
"""N, K of the weights with which the probe checks that products are right."""
SHAPES = (*SMALL_SHAPES, (576, 576), (192, 1536), (1536, 192))
"""N, K of those with which it checks whether rows depend on the batch: also long sums, and wide outputs as a head's."""
PROBED_ROWS = 48


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, prepacked: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`: [M, K] and [N, K] -> [M, N], float32, with any strides.

    Args:
        x: [M, K], M and K at least 1.
        weight: [N, K].
        bias: [N].
        prepacked: the result of `prepack(weight)`, to be read in place of `weight`; the result is the same.
    """
    rows, least = x.shape[0], COPIES if prepacked is None else PREPACKED_COPIES
    if rows == 1:
        x = x.expand(least, -1)
    elif rows < least:
        x = torch.cat((x, x[:1].expand(least - rows, -1)))
    out: Tensor = torch.ops.mkldnn._linear_pointwise(
        x, weight if prepacked is None else prepacked, bias, "none", [], ""
    )
    return out if rows >= least else out[:rows]


def product_of_rows(x: Tensor, prepacked: Tensor, bias: Tensor | None = None, addend: Tensor | None = None) -> Tensor:
    """`product` of `PREPACKED_COPIES` rows or more with a prepacked weight, plus `addend` [M, N], in a single call."""
    out: Tensor
    if addend is None:
        out = torch.ops.mkldnn._linear_pointwise(x, prepacked, bias, "none", [], "")
    else:
        out = torch.ops.mkldnn._linear_pointwise.binary(x, addend, prepacked, bias, "add")
    return out


def is_watched() -> bool:
    """Whether something is on that sees or replaces operators, and does not know these.

    `torch.compile`, autocast, modes and function transforms know those of `F.linear`.
    """
    return (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def prepack(weight: Tensor) -> Tensor:
    """A copy of a weight [N, K] in the order in which oneDNN reads it: an opaque tensor of as many bytes or a few more.

    The copy takes about as long as a product with 64 rows.
    """
    prepacked: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, 16)
    return prepacked


@cache
def why_unavailable() -> str | None:
    """The reason that these products cannot be used with this version of torch; None: they can, and are right."""
    if not torch.backends.mkldnn.is_available():
        return "this version of torch has no oneDNN"
    try:
        for weight, x in map(_random, SMALL_SHAPES):
            expected = x.double() @ weight.double().t()
            for found in (product(x, weight), product(x, weight.t().contiguous().t()), _with_prepacked(x, weight)):
                if not torch.allclose(found.double(), expected, rtol=0, atol=TOLERANCE * float(expected.abs().max())):
                    return "products of torch's oneDNN operators are wrong"
            bias = torch.linspace(-1, 1, len(weight))
            if not torch.equal(product(x, weight, bias), product(x, weight) + bias):
                return "products with a bias of torch's oneDNN operators are wrong"
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:  # private: they may change or go
        raise_shortage(error)
        return f"torch's oneDNN operators do not work here: {str(error).splitlines()[0]}"
    return None


@cache
def adds_exactly() -> bool:
    """Whether `product_of_rows` with an addend works here, and gives the bits of a product and a sum after it."""
    if why_unavailable() is not None:
        return False
    try:
        for weight, x in map(_random, SMALL_SHAPES):
            bias, prepacked = torch.linspace(-1, 1, len(weight)), prepack(weight)
            addend = product(x, weight).flip(0)
            if not torch.equal(product_of_rows(x, prepacked, bias, addend), product(x, weight, bias) + addend):
                return False
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        raise_shortage(error)
        return False
    return True


def why_not_batch_invariant() -> str | None:
    """The reason that a row of a product may depend on the other rows, or on prepacking; None: as probed, it does not.

    The probe takes some ten milliseconds, and is made once for each number of threads.
    """
    return why_unavailable() or _why_rows_differ(torch.get_num_threads())


@cache
def _why_rows_differ(n_threads: int) -> str | None:
    for n, k in SHAPES:
        weight, x = _random((n, k))
        whole = product(x, weight)
        where = f"of oneDNN's products with a weight of {n} x {k} on {n_threads} threads"
        if not torch.equal(_with_prepacked(x, weight), whole):
            return f"prepacking changes the result {where}"
        prepacked = prepack(weight)
        joint = product(x, weight, prepacked=prepack(torch.cat((weight, weight[: n // 2], weight))))
        if not torch.equal(joint[:, -n:], whole):
            return f"the results of weights that are prepacked together differ {where}"
        for start, stop in ((0, 1), (0, 2), (0, 3), (5, 13), (0, PROBED_ROWS - 1)):
            for found in (product(x[start:stop], weight), product(x[start:stop], weight, prepacked=prepacked)):
                if not torch.equal(found, whole[start:stop]):
                    return f"rows depend on the batch {where}"
    return None


def _random(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A weight of a shape [N, K], and inputs [M, K]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator), torch.randn(PROBED_ROWS, shape[1], generator=generator)


def _with_prepacked(x: Tensor, weight: Tensor) -> Tensor:
    return product(x, weight, prepacked=prepack(weight))
