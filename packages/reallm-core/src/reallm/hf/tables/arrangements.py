"""How one tensor of a checkpoint holds one or several parameters of ours: which of its numbers are whose.

An arrangement moves numbers and computes none, so that what is loaded and saved again is the same bit for bit. It says
in one direction where the parts of a tensor are; the other direction follows. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from reallm.model.config import ReaLModelConfig
from reallm.model.sharding import Shape

if TYPE_CHECKING:
    from torch import Tensor


class Arrangement(Protocol):
    """How a tensor of theirs holds parameters of ours, whose `shapes` are given in the order of the table's key.

    `kind` is the last part of our parameters' names, `weight` or `bias` for most.
    """

    def shape(self, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> Shape:
        """The shape of their tensor."""

    def views(self, theirs: Tensor, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> Sequence[Tensor]:
        """The part of `theirs` that each parameter of ours is: a view, with its numbers in our order.

        It need not have our shape yet. Together the views have each number of `theirs` once.
        """


@dataclass(frozen=True)
class Same:
    """Their tensor is our parameter."""

    def shape(self, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> Shape:
        """See `Arrangement.shape`."""
        return shapes[0]

    def views(self, theirs: Tensor, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> Sequence[Tensor]:
        """See `Arrangement.views`."""
        return [theirs]


@dataclass(frozen=True)
class Fused:
    """Their tensor holds the outputs of several projections, one projection after another.

    With `groups`, a number of heads by the name of its field such as `"n_kv_heads"`, the outputs of all projections are
    dealt out in that many groups: the queries, keys and values of the first group, then those of the second.
    """

    groups: str | None = None

    def shape(self, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> Shape:
        """See `Arrangement.shape`."""
        dim = _output_dim(kind)
        whole = list(shapes[0])
        whole[dim] = sum(shape[dim] for shape in shapes)
        return tuple(whole)

    def views(self, theirs: Tensor, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> Sequence[Tensor]:
        """See `Arrangement.views`."""
        dim = theirs.dim() + _output_dim(kind)
        n_groups = 1 if self.groups is None else getattr(config, self.groups)
        grouped = theirs.unflatten(dim, (n_groups, -1))
        return grouped.split([shape[dim] // n_groups for shape in shapes], dim=dim + 1)


@dataclass(frozen=True)
class Transposed:
    """Their weights are [in, out], ours [out, in]; biases are the same. `of` is what holds once that is undone."""

    of: Arrangement = field(default_factory=Same)

    def shape(self, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> Shape:
        """See `Arrangement.shape`."""
        shape = self.of.shape(shapes, kind, config)
        return shape if kind == "bias" else (*shape[:-2], shape[-1], shape[-2])

    def views(self, theirs: Tensor, shapes: Sequence[Shape], kind: str, config: ReaLModelConfig) -> Sequence[Tensor]:
        """See `Arrangement.views`."""
        return self.of.views(theirs if kind == "bias" else theirs.transpose(-1, -2), shapes, kind, config)


@dataclass(frozen=True)
class Source:
    """Names of a checkpoint, and how the tensors that they name hold ours."""

    name: str
    arrangement: Arrangement = field(default_factory=Same)


def transposed(name: str) -> Source:
    """A projection whose weight is stored as [in, out]."""
    return Source(name, Transposed())


def fused(name: str, *, groups: str | None = None, transposed: bool = False) -> Source:
    """Several projections in one tensor, in the order of the table's key; see `Fused` and `Transposed`."""
    arrangement = Fused(groups)
    return Source(name, Transposed(arrangement) if transposed else arrangement)


def _output_dim(kind: str) -> int:
    """The dim of outputs, from the end: of a weight [..., out, in], of a bias [..., out]."""
    return -1 if kind == "bias" else -2
