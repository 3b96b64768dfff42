"""Linear layers of many experts, each on rows of its own, in the three products of a linear layer.

Rows are sorted by expert, so that each expert has a segment of them. Everywhere but on newer GPUs each segment is one
ordinary matrix product, written where it belongs.

Shapes: N rows, X experts, I inputs, O outputs; weights [X, O, I].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_ROWS = 16
"""Up to here the time of a matrix product on a CPU is that of reading the weight."""


class GroupedLinear(Protocol):
    """The products of a linear layer without bias that belong to a division of rows over experts."""

    def outputs(self, x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
        """`x_e @ weight_e.T` of each expert: [N, I] -> [N, O]; `out` is memory that may be used for it."""

    def input_grads(self, grad: Tensor, weight: Tensor, onto: Tensor | None = None) -> Tensor:
        """`grad_e @ weight_e` of each expert: [N, O] -> [N, I]; added to `onto`, which may be overwritten."""

    def weight_grads(self, grad: Tensor, x: Tensor) -> Tensor:
        """`grad_e.T @ x_e` of each expert: [N, O] and [N, I] -> [X, O, I], zero for an expert without rows."""


@dataclass(frozen=True)
class LoopedLinear:
    """One product for each expert that has rows."""

    n_experts: int
    busy: Sequence[int]
    """The experts that have rows, in order; in decoding they are few."""
    sizes: Sequence[int]
    """How many rows each of them has."""

    @classmethod
    def of(cls, sizes: Sequence[int]) -> LoopedLinear:
        """From the number of rows of every expert."""
        busy = [expert for expert, size in enumerate(sizes) if size]
        return cls(len(sizes), busy, [sizes[expert] for expert in busy])

    def outputs(self, x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
        if out is None:
            out = x.new_empty(len(x), weight.shape[1])
        for rows, matrix, result in self._products(x, weight.transpose(1, 2), out):
            _product(rows, matrix, result)
        return out

    def input_grads(self, grad: Tensor, weight: Tensor, onto: Tensor | None = None) -> Tensor:
        if onto is None:
            onto = grad.new_empty(len(grad), weight.shape[2])
            for rows, matrix, result in self._products(grad, weight, onto):
                _product(rows, matrix, result)
        else:
            for rows, matrix, result in self._products(grad, weight, onto):
                result.addmm_(rows, matrix)
        return onto

    def weight_grads(self, grad: Tensor, x: Tensor) -> Tensor:
        make = x.new_empty if len(self.busy) == self.n_experts else x.new_zeros
        out = make((self.n_experts, grad.shape[1], x.shape[1]))
        for grads, result, rows in self._products(grad, out, x):
            torch.mm(grads.t(), rows, out=result)
        return out

    def _products(self, rows: Tensor, matrices: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of each busy expert its rows of two tensors, and its matrix."""
        sizes = list(self.sizes)
        each = matrices.unbind() if len(self.busy) == self.n_experts else [matrices[expert] for expert in self.busy]
        return zip(rows.split(sizes), each, others.split(sizes), strict=True)


def _product(x: Tensor, matrix: Tensor, out: Tensor) -> None:
    """`x @ matrix` into `out`: [M, I] and [I, O] -> [M, O]."""
    n_slices = torch.get_num_threads()
    few = len(x) <= FEW_ROWS and x.device.type == "cpu" and x.dtype == torch.float32
    if few and n_slices > 1 and matrix.shape[1] % n_slices == 0:
        # MKL reads a matrix with one thread when there is little to multiply it with; a batch of slices has all of them
        slices = matrix.t().unflatten(0, (n_slices, -1))
        columns = torch.bmm(slices, x.t().expand(n_slices, -1, -1))
        out.copy_(columns.flatten(0, 1).t())
    else:
        torch.mm(x, matrix, out=out)


@dataclass(frozen=True)
class KernelLinear:
    """One call of torch's grouped kernel for all experts, which needs no number on the CPU."""

    ends: Tensor
    """[X] int32: where the rows of each expert end."""

    @staticmethod
    def fits(x: Tensor, weight: Tensor) -> bool:
        """Whether the kernel runs here: bfloat16 on CUDA from Ampere on, with rows of whole 16 bytes."""
        return (
            x.is_cuda
            and x.dtype == weight.dtype == torch.bfloat16
            and weight.shape[1] % 8 == 0
            and weight.shape[2] % 8 == 0
            and torch.cuda.get_device_capability(x.device) >= (8, 0)
        )

    def outputs(self, x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
        return F.grouped_mm(x, weight.transpose(1, 2), offs=self.ends)

    def input_grads(self, grad: Tensor, weight: Tensor, onto: Tensor | None = None) -> Tensor:
        product = F.grouped_mm(grad, weight, offs=self.ends)
        return product if onto is None else onto.add_(product)

    def weight_grads(self, grad: Tensor, x: Tensor) -> Tensor:
        return F.grouped_mm(grad.t(), x, offs=self.ends)
