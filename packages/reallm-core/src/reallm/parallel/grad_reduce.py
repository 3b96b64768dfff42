"""Sums gradients over the ranks that hold partial ones, and computes the norm of the whole network's gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from reallm.model.config import ReaLModelConfig
from reallm.model.parameter_names import EMBEDDING_WEIGHT
from reallm.model.transformer import Transformer
from reallm.parallel.mesh import Group, Mesh
from reallm.parallel.sharding import local_boxes, tp_boxes

MAX_COALESCED_NUMEL = 1 << 16
"""Maximum number of elements of a gradient that is flattened into one all-reduce together with others."""


class GradientReducer:
    """Reduces gradients between the last backward pass and the optimizer step.

    Gradients are summed over data-parallel ranks (unless FSDP does), over tensor-parallel ranks where each has a
    partial one, and over the first and the last stage for a tied embedding.

    Args:
        config: configuration of the whole network.
        mesh: the layout of the network.
        partial_grads: parameter -> the tensor-parallel ranks over which its gradient is summed, as ranks within the
            group; see `tensor_parallel.partial_grads`.
        device: device of the gradients.
    """

    def __init__(
        self, config: ReaLModelConfig, mesh: Mesh, partial_grads: Mapping[str, Sequence[int]], device: torch.device
    ) -> None:
        self._mesh, self._device = mesh, device
        self._owned = owned_for_norm(config, mesh)
        layout, coordinate = mesh.layout, mesh.coordinate
        boxes = local_boxes(config, layout, mesh.rank)
        replicated = [name for name, box in boxes.items() if not (layout.fsdp and box.shape)] if layout.dp > 1 else []
        self._all_reduces: list[tuple[Group, list[str]]] = [(mesh.dp, replicated)] if replicated else []
        tp_ranks = layout.tp_ranks(coordinate)
        for tp_group in sorted({tuple(group) for group in partial_grads.values() if len(group) > 1}):
            names = [name for name in boxes if tuple(partial_grads.get(name, ())) == tp_group]
            self._all_reduces.append((mesh.subgroup([tp_ranks[tp] for tp in tp_group]), names))
        if layout.pp > 1 and config.head_is_tied and coordinate.pp in (0, layout.pp - 1):
            self._all_reduces.append((mesh.first_and_last_stage, [EMBEDDING_WEIGHT]))

    @classmethod
    def of(cls, model: Transformer, mesh: Mesh) -> GradientReducer:
        """Make a reducer for a network after `parallelize`."""
        partial_grads: Mapping[str, Sequence[int]] = {}
        if mesh.layout.tp > 1:
            from reallm.parallel.tensor_parallel.partial_grads import partial_grad_groups

            boxes = tp_boxes(model.config, mesh.layout, mesh.coordinate.pp)
            partial_grads = partial_grad_groups(
                model,
                model.parameter_shards(),
                boxes,
                mesh.coordinate.tp,
                sequence_parallel=bool(getattr(model, "sequence_parallel", False)),
            )
        return cls(model.config, mesh, partial_grads, next(model.parameters()).device)

    @torch.no_grad()
    def reduce(self, gradients: Mapping[str, Tensor]) -> None:
        """All-reduce partial gradients, in place; then all ranks that hold a parameter have its whole gradient."""
        for group, names in self._all_reduces:
            all_reduce_coalesced([gradients[name] for name in names if name in gradients], group)

    @torch.no_grad()
    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The L2 norm of the whole network's gradients, 0-dim float32, the same on all ranks."""
        owned = [gradient for name, gradient in gradients.items() if name in self._owned and gradient.numel()]
        squares = torch.zeros((), dtype=torch.float64, device=self._device)
        if owned:
            squares += torch.stack(torch._foreach_norm(owned)).double().square().sum()
        dist.all_reduce(squares, group=self._mesh.all)
        return squares.sqrt().float()


def owned_for_norm(config: ReaLModelConfig, mesh: Mesh) -> frozenset[str]:
    """The parameters that this rank counts in a norm, so that each element of the network is counted once.

    Among ranks with the same box, only the first counts it; a tied embedding is counted on the first stage.
    """
    layout, coordinate = mesh.layout, mesh.coordinate
    lower_tp_ranks = [layout.rank_at(dp=coordinate.dp, pp=coordinate.pp, tp=tp) for tp in range(coordinate.tp)]
    lower_boxes = [local_boxes(config, layout, rank) for rank in lower_tp_ranks]
    return frozenset(
        name
        for name, box in local_boxes(config, layout, mesh.rank).items()
        if (coordinate.dp == 0 or (layout.fsdp and box.shape))
        and not (name == EMBEDDING_WEIGHT and coordinate.pp > 0)
        and all(boxes[name] != box for boxes in lower_boxes)
    )


def all_reduce_coalesced(tensors: Iterable[Tensor], group: Group) -> None:
    """Sum tensors over a group, in place; all ranks pass the same shapes and dtypes in the same order."""
    large: list[Tensor] = []
    small: list[Tensor] = []
    for tensor in tensors:
        (large if tensor.numel() > MAX_COALESCED_NUMEL and tensor.is_contiguous() else small).append(tensor)
    works = [dist.all_reduce(tensor, group=group, async_op=True) for tensor in large]
    for dtype in sorted({tensor.dtype for tensor in small}, key=str):
        same_dtype = [tensor for tensor in small if tensor.dtype == dtype]
        flat = torch.cat([tensor.flatten() for tensor in same_dtype])
        dist.all_reduce(flat, group=group)
        for tensor, summed in zip(same_dtype, flat.split([tensor.numel() for tensor in same_dtype]), strict=True):
            tensor.copy_(summed.view_as(tensor))
    for work in works:
        work.wait()
