"""Gradients that several ranks have a summand of each, and the norm of those of all ranks together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from reallm.model.config import ReaLModelConfig
from reallm.model.parameter_names import EMBEDDING_WEIGHT
from reallm.model.transformer import Transformer
from reallm.parallel.mesh import Group, Mesh
from reallm.parallel.sharding import local_boxes

SMALL = 1 << 16
"""Elements up to which a gradient is sent together with others."""


class GradientReducer:
    """What ranks of a layout do with their gradients between the last backward pass and the optimizer's step.

    Args:
        summed: for the gradients that tensor parallelism leaves as summands, the ranks that have them; see
            `parallel.tensor.gradient_groups`.
        device: where the gradients lie.
    """

    def __init__(
        self, config: ReaLModelConfig, mesh: Mesh, summed: Mapping[str, Sequence[int]], device: torch.device
    ) -> None:
        self._mesh, self._device = mesh, device
        self._counted = owned_for_norm(config, mesh)
        layout, place = mesh.layout, mesh.here
        boxes = local_boxes(config, layout, mesh.rank)
        over_data = [name for name, box in boxes.items() if not (layout.fsdp and box.shape)] if layout.dp > 1 else []
        self._sums: list[tuple[Group, list[str]]] = [(mesh.dp, over_data)] if over_data else []
        for ranks in sorted({tuple(ranks) for ranks in summed.values() if len(ranks) > 1}):
            self._sums.append((mesh.among(list(ranks)), [n for n in boxes if tuple(summed.get(n, ())) == ranks]))
        if layout.pp > 1 and config.head_is_tied and place.pp in (0, layout.pp - 1):
            self._sums.append((mesh.ends, [EMBEDDING_WEIGHT]))

    @classmethod
    def of(cls, model: Transformer, mesh: Mesh) -> GradientReducer:
        """For a network that has been spread over a mesh."""
        summed: Mapping[str, Sequence[int]] = {}
        if mesh.layout.tp > 1:
            from reallm.parallel.tensor_parallel.partial_grads import gradient_groups

            summed = gradient_groups(model, mesh)
        return cls(model.config, mesh, summed, next(model.parameters()).device)

    @torch.no_grad()
    def reduce(self, gradients: Mapping[str, Tensor]) -> None:
        """Add up what is a summand, in place; afterwards all ranks that hold a parameter have its gradient."""
        for group, names in self._sums:
            sum_over(group, [gradients[name] for name in names if name in gradients])

    @torch.no_grad()
    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The L2 norm of the gradients of the whole network, 0-dim float32, the same on all ranks."""
        own = [gradient for name, gradient in gradients.items() if name in self._counted and gradient.numel()]
        squares = torch.zeros((), dtype=torch.float64, device=self._device)
        if own:
            squares += torch.stack(torch._foreach_norm(own)).double().square().sum()
        dist.all_reduce(squares, group=self._mesh.all)
        return squares.sqrt().float()


def owned_for_norm(config: ReaLModelConfig, mesh: Mesh) -> frozenset[str]:
    """The parameters whose elements this rank counts: each element of the network is counted by one rank.

    Of the ranks that hold the same part, it is the first one; of a table on two stages, the first stage has it.
    """
    layout, place = mesh.layout, mesh.here
    own = local_boxes(config, layout, mesh.rank)
    before = [
        local_boxes(config, layout, layout.rank_at(dp=place.dp, pp=place.pp, tp=tp)) for tp in range(place.tp)
    ]  # ranks with the other parts of the same layers
    return frozenset(
        name
        for name, box in own.items()
        if (place.dp == 0 or (layout.fsdp and box.shape))
        and not (name == EMBEDDING_WEIGHT and place.pp > 0)
        and all(other[name] != box for other in before)
    )


def sum_over(group: Group, tensors: Iterable[Tensor]) -> None:
    """Add up tensors over a group, in place; all ranks have tensors of the same shapes and types, in this order."""
    large: list[Tensor] = []
    small: list[Tensor] = []
    for tensor in tensors:
        (large if tensor.numel() > SMALL and tensor.is_contiguous() else small).append(tensor)
    works = [dist.all_reduce(tensor, group=group, async_op=True) for tensor in large]
    for dtype in sorted({tensor.dtype for tensor in small}, key=str):
        some = [tensor for tensor in small if tensor.dtype == dtype]
        together = torch.cat([tensor.flatten() for tensor in some])
        dist.all_reduce(together, group=group)
        for tensor, summed in zip(some, together.split([tensor.numel() for tensor in some]), strict=True):
            tensor.copy_(summed.view_as(tensor))
    for work in works:
        work.wait()
