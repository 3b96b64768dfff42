"""Arrangements: the placement of the elements of one or several of our parameters in one tensor of a checkpoint.

An arrangement only moves elements, so that a checkpoint that is loaded and saved again is the same bit for bit. It
defines in one direction where the parameters are in a tensor; the other direction follows. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Protocol

from reallm.model.config import ReaLModelConfig
from reallm.model.sharding import Shape

if TYPE_CHECKING:
    from torch import Tensor


class Arrangement(Protocol):
    """The arrangement of parameters in an HF tensor; `shapes` are theirs, in the order of the table's key.

    `kind` is the last component of the parameters' names, `weight` or `bias` for most.
    """

    def shape(self, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> Shape:
        """The shape of the HF tensor."""

    def views(self, hf_tensor: Tensor, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> Sequence[Tensor]:
        """One view of `hf_tensor` for each parameter, with its elements in row-major order.

        A view need not have the parameter's shape. Together the views cover each element of `hf_tensor` once.
        """


@dataclass(frozen=True)
class Same:
    """Arrangement in which the HF tensor is the parameter."""

    def shape(self, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> Shape:
        """See `Arrangement.shape`."""
        return shapes[0]

    def views(self, hf_tensor: Tensor, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> Sequence[Tensor]:
        """See `Arrangement.views`."""
        return [hf_tensor]


@dataclass(frozen=True)
class Fused:
    """Arrangement in which the HF tensor holds the outputs of several projections, one projection after another.

    With `groups`, a field of `ReaLModelConfig` that is a number of heads such as `"n_kv_heads"` or `"extra.n_heads"`,
    outputs are interleaved in that many groups: queries, keys and values of the first group, then of the second, ....
    `dim` is the dim of outputs, where that is not the last of a bias and the one before it of a weight.
    """

    groups: str | None = None
    dim: int | None = None

    def shape(self, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> Shape:
        """See `Arrangement.shape`."""
        dim = self._dim(kind)
        fused_shape = list(shapes[0])
        fused_shape[dim] = sum(shape[dim] for shape in shapes)
        return tuple(fused_shape)

    def views(self, hf_tensor: Tensor, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> Sequence[Tensor]:
        """See `Arrangement.views`."""
        dim = self._dim(kind) % hf_tensor.dim()
        n_groups = 1 if self.groups is None else attrgetter(self.groups)(config)
        grouped = hf_tensor.unflatten(dim, (n_groups, -1))
        return grouped.split([shape[dim] // n_groups for shape in shapes], dim=dim + 1)

    def _dim(self, kind: str) -> int:
        """The dim of outputs, by default from the end: of a weight [..., out, in], of a bias [..., out]."""
        if self.dim is not None:
            return self.dim
        return -1 if kind == "bias" else -2


@dataclass(frozen=True)
class Transposed:
    """Arrangement with HF weights [in, out], ours [out, in], and equal biases. `of` applies after transposing."""

    of: Arrangement = field(default_factory=Same)

    def shape(self, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> Shape:
        """See `Arrangement.shape`."""
        shape = self.of.shape(shapes, kind, config)
        return shape if kind == "bias" else (*shape[:-2], shape[-1], shape[-2])

    def views(self, hf_tensor: Tensor, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> Sequence[Tensor]:
        """See `Arrangement.views`."""
        return self.of.views(hf_tensor if kind == "bias" else hf_tensor.transpose(-1, -2), shapes, kind, config)


@dataclass(frozen=True)
class Source:
    """A module or tensor of the checkpoint, and the arrangement of our parameters in its tensors."""

    name: str
    arrangement: Arrangement = field(default_factory=Same)


def transposed(name: str) -> Source:
    """A projection whose weight is stored as [in, out]."""
    return Source(name, Transposed())


def fused(name: str, *, groups: str | None = None, dim: int | None = None, transposed: bool = False) -> Source:
    """Several projections in one tensor, in the order of the table's key; see `Fused` and `Transposed`."""
    arrangement = Fused(groups, dim)
    return Source(name, Transposed(arrangement) if transposed else arrangement)
