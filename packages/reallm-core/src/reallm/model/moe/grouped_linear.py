"""Grouped linear layer: the three matrix products of a linear layer, for many experts with a segment of rows each.

Rows are sorted by expert. Except on newer GPUs, each segment is one matrix product into its part of the output.

Shapes: N rows, X experts, I inputs, O outputs; weights [X, O, I].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from reallm.model.products.linear import linear_into

FEW_ROWS = 16
"""Number of rows up to which a matrix product on a CPU takes as long as reading the weight."""


class GroupedLinear(Protocol):
    """The operations of a linear layer, for a given division of rows over experts."""

    def outputs(self, x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
        """`x_e @ weight_e.T` of each expert: [N, I] -> [N, O]; `out` is memory that may be used for the result."""

    def input_grads(self, grad: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
        """`grad_e @ weight_e` of each expert: [N, O] -> [N, I]; added to `out`, in place, if given."""

    def weight_grads(self, grad: Tensor, x: Tensor) -> Tensor:
        """`grad_e.T @ x_e` of each expert: [N, O] and [N, I] -> [X, O, I], zero for an expert without rows."""

    def for_rows(self, bias: Tensor) -> Tensor:
        """The bias of each row's expert: [X, O] -> [N, O]."""

    def bias_grads(self, grad: Tensor) -> Tensor:
        """The sum of each expert's rows: [N, O] -> [X, O], zero for an expert without rows."""


@dataclass(frozen=True)
class LoopedLinear:
    """Grouped linear layer that computes one product for each expert that has rows."""

    n_experts: int
    busy: Sequence[int]
    """Experts that have rows, in order; in decoding they are few."""
    sizes: Sequence[int]
    """Number of rows of each busy expert."""
    exact: bool = False
    """Whether a row of `outputs` does not depend on the other rows, bit for bit."""

    @classmethod
    def of(cls, sizes: Sequence[int], *, exact: bool = False) -> LoopedLinear:
        """Make it from the number of rows of every expert, zeros included."""
        busy = [expert for expert, size in enumerate(sizes) if size]
        return cls(len(sizes), busy, [sizes[expert] for expert in busy], exact)

    def outputs(self, x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
        if out is None:
            out = x.new_empty(len(x), weight.shape[1])
        for rows, matrix, result in self._products(x, weight.transpose(1, 2), out):
            if self.exact:
                linear_into(rows, matrix.t(), result, exact=True)
            else:
                _product(rows, matrix, result)
        return out

    def input_grads(self, grad: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
        if out is None:
            out = grad.new_empty(len(grad), weight.shape[2])
            for rows, matrix, result in self._products(grad, weight, out):
                _product(rows, matrix, result)
        else:
            for rows, matrix, result in self._products(grad, weight, out):
                result.addmm_(rows, matrix)
        return out

    def weight_grads(self, grad: Tensor, x: Tensor) -> Tensor:
        make = x.new_empty if len(self.busy) == self.n_experts else x.new_zeros
        out = make((self.n_experts, grad.shape[1], x.shape[1]))
        for grads, result, rows in self._products(grad, out, x):
            torch.mm(grads.t(), rows, out=result)
        return out

    def for_rows(self, bias: Tensor) -> Tensor:
        out = bias.new_empty(sum(self.sizes), bias.shape[1])
        for rows, each, _ in self._products(out, bias, out):
            rows.copy_(each)
        return out

    def bias_grads(self, grad: Tensor) -> Tensor:
        out = grad.new_zeros(self.n_experts, grad.shape[1])
        for grads, result, _ in self._products(grad, out, grad):
            torch.sum(grads, dim=0, out=result)
        return out

    def _products(self, rows: Tensor, matrices: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield for each busy expert its rows of `rows`, its matrix, and its rows of `others`."""
        sizes = list(self.sizes)
        each = matrices.unbind() if len(self.busy) == self.n_experts else [matrices[expert] for expert in self.busy]
        return zip(rows.split(sizes), each, others.split(sizes), strict=True)


def _product(x: Tensor, matrix: Tensor, out: Tensor) -> None:
    """`x @ matrix` into `out`: [M, I] and [I, O] -> [M, O]."""
    n_slices = torch.get_num_threads()
    few = len(x) <= FEW_ROWS and x.device.type == "cpu" and x.dtype == torch.float32
    if few and n_slices > 1 and matrix.shape[1] % n_slices == 0:
        # MKL reads a matrix with one thread when there are few rows; a batch of slices uses all threads
        slices = matrix.t().unflatten(0, (n_slices, -1))
        columns = torch.bmm(slices, x.t().expand(n_slices, -1, -1))
        out.copy_(columns.flatten(0, 1).t())
    else:
        torch.mm(x, matrix, out=out)


@dataclass(frozen=True)
class KernelLinear:
    """Grouped linear layer that calls torch's grouped kernel once, without copying sizes to the CPU."""

    ends: Tensor
    """End [X] int32 of the rows of each expert."""
    total: int
    """Number of rows N."""

    @staticmethod
    def fits(x: Tensor, weight: Tensor) -> bool:
        """Whether the kernel supports these: bfloat16 on CUDA from Ampere on, and rows of a multiple of 16 bytes."""
        return (
            x.is_cuda
            and x.dtype == weight.dtype == torch.bfloat16
            and weight.shape[1] % 8 == 0
            and weight.shape[2] % 8 == 0
            and torch.cuda.get_device_capability(x.device) >= (8, 0)
        )

    def outputs(self, x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
        return F.grouped_mm(x, weight.transpose(1, 2), offs=self.ends)

    def input_grads(self, grad: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
        product = F.grouped_mm(grad, weight, offs=self.ends)
        return product if out is None else out.add_(product)

    def weight_grads(self, grad: Tensor, x: Tensor) -> Tensor:
        return F.grouped_mm(grad.t(), x, offs=self.ends)

    def for_rows(self, bias: Tensor) -> Tensor:
        n_rows = self.ends.diff(prepend=self.ends.new_zeros(1))
        return bias.repeat_interleave(n_rows, dim=0, output_size=self.total)

    def bias_grads(self, grad: Tensor) -> Tensor:
        # a sum by atomic additions would have another result each time; the kernel takes columns in multiples of 8
        return self.weight_grads(grad, grad.new_ones(len(grad), 8))[..., 0].contiguous()
