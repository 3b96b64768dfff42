"""The tensors of an adapter's file in PEFT's format, and the parameters that they are made from.

A projection of the checkpoint that holds several of ours, such as `qkv_proj`, has one adapter in PEFT, while each of
ours has its own. Several of rank r are one of rank n * r, whose B is block-diagonal. The other way round, one of rank r
is n of rank r with the same A.

The matrices of X experts are stacked in ours, A [X, r, in] and B [X, out, r]. PEFT has A as [X * r, in], and B as
[out, r * X], in which the columns of one expert are X apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from reallm.hf.conversion.adapter_modules import adapted_modules, names_in_file
from reallm.hf.conversion.mapping import WeightMapping, weight_mappings
from reallm.hf.family import HFFamily
from reallm.hf.tables.arrangements import Arrangement, Same
from reallm.model.config import ReaLModelConfig
from reallm.model.parameter_names import LORA_A, LORA_B, LORA_MAGNITUDE, head_weight_name, module_of
from reallm.model.sharding import Shape

PEFT_PREFIX = "base_model.model."
"""Prefix of the names of an adapter's tensors: PEFT's class, and the one that it wraps."""


@dataclass(frozen=True)
class AdapterTensor:
    """A tensor of an adapter's file, and the parameters that it is made from."""

    name: str
    parameters: tuple[str, ...]
    shapes: tuple[Shape, ...]
    """Shapes of the parameters."""
    shape: Shape
    """Its shape as we write it."""
    arrangement: Arrangement
    """The arrangement of our outputs in its outputs."""
    config: ReaLModelConfig
    rank: int
    n_experts: int | None = None
    """Number of experts X, if the parameters are stacked."""

    @property
    def kind(self) -> str:
        """The last part of the parameters' names."""
        return self.parameters[0].rpartition(".")[2]

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """The tensor, made from the whole parameters."""
        joint = self._join(parts)
        if self.n_experts is None:
            return joint
        return joint.flatten(0, 1) if self.kind == LORA_A else joint.permute(1, 2, 0).flatten(1)

    def unpack(self, tensor: Tensor) -> list[Tensor]:
        """The whole parameters.

        Raises:
            ValueError: the tensor has no such shape.
        """
        joint = tensor
        if self.n_experts is not None and tensor.shape[self._rank_dim] % self.n_experts == 0:
            if self.kind == LORA_A:
                joint = tensor.unflatten(0, (self.n_experts, -1))
            else:
                joint = tensor.unflatten(1, (-1, self.n_experts)).permute(2, 0, 1).contiguous()
        parts = self._part(joint)
        if [tuple(part.shape) for part in parts] != list(self.shapes):
            raise ValueError(f"has the shape {list(tensor.shape)}, not {list(self.shape)}")
        return parts

    def is_block_diagonal(self, tensor: Tensor) -> bool:
        """Whether a B of several parameters is zero outside of their blocks."""
        return torch.equal(self.pack(self.unpack(tensor)), tensor)

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        """One matrix, or vector, of all parameters; of experts, one for each of them."""
        n = len(parts)
        if n == 1:
            return parts[0]
        if self.kind == LORA_A:
            return torch.cat(list(parts), dim=-2)
        if self.kind == LORA_B:
            n_out = sum(part.shape[-2] for part in parts)
            joint = parts[0].new_zeros(*parts[0].shape[:-2], n_out, n * self.rank)
        else:
            joint = parts[0].new_zeros(self.shape)
        for number, (view, part) in enumerate(zip(self._views(joint), parts, strict=True)):
            own = view if self.kind == LORA_MAGNITUDE else view[..., self._columns(number)]
            own.copy_(part.reshape(own.shape))
        return joint

    def _part(self, joint: Tensor) -> list[Tensor]:
        """The inverse of `_join`; also for an A that several parameters share."""
        n = len(self.parameters)
        if n == 1:
            return [joint]
        if self.kind == LORA_A:
            return list(joint.split(self.rank, dim=-2)) if joint.shape[-2] == n * self.rank else [joint] * n
        views = self._views(joint)
        if self.kind == LORA_MAGNITUDE:
            return [view.flatten() for view in views]
        if joint.shape[-1] == n * self.rank:
            views = [view[..., self._columns(number)] for number, view in enumerate(views)]
        return [view.reshape(*joint.shape[:-2], -1, view.shape[-1]) for view in views]

    @property
    def _rank_dim(self) -> int:
        """The dim of the file's tensor with the ranks of all experts."""
        return 0 if self.kind == LORA_A else 1

    def _views(self, joint: Tensor) -> Sequence[Tensor]:
        is_vector = self.kind == LORA_MAGNITUDE
        shapes = [shape if is_vector else (*shape[:-1], joint.shape[-1]) for shape in self.shapes]
        return self.arrangement.views(joint, shapes, "bias" if is_vector else "weight", self.config)

    def _columns(self, number: int) -> slice:
        return slice(number * self.rank, (number + 1) * self.rank)


@lru_cache(maxsize=16)
def adapter_tensors(family: HFFamily, config: ReaLModelConfig) -> tuple[AdapterTensor, ...]:
    """The tensors of the file of an adapter, in the order of the checkpoint, with the scalar head of a critic."""
    lora = config.lora
    assert lora is not None
    found = []
    for file_name, module in names_in_file(adapted_modules(family, config, lora.targets)).items():
        n, shapes = len(module.parameters), module.shapes
        n_out, n_in = sum(shape[-2] for shape in shapes), shapes[0][-1]
        n_experts = shapes[0][0] if module.is_experts else None
        stacked, n_ranks = shapes[0][:-2], n * lora.rank * (n_experts or 1)
        kinds: list[tuple[str, str, list[Shape], Shape]] = [
            (LORA_A, "lora_A.weight", [(*stacked, lora.rank, n_in)] * n, (n_ranks, n_in)),
            (LORA_B, "lora_B.weight", [(*shape[:-1], lora.rank) for shape in shapes], (n_out, n_ranks)),
        ]
        if lora.dora:
            kinds.append((LORA_MAGNITUDE, "lora_magnitude_vector", [shape[:1] for shape in shapes], (n_out,)))
        for own_name, peft_name, parts, whole in kinds:
            parameters = tuple(f"{module_of(name)}.{own_name}" for name in module.parameters)
            name, outputs = f"{PEFT_PREFIX}{file_name}.{peft_name}", module.of_outputs
            found.append(
                AdapterTensor(name, parameters, tuple(parts), whole, outputs, config.base, lora.rank, n_experts)
            )
    if config.is_critic:
        head = critic_head(family, config)
        name = PEFT_PREFIX + head.hf_names[0]
        found.append(AdapterTensor(name, head.parameters, head.shapes, head.hf_shape, Same(), config.base, 0))
    return tuple(found)


def critic_head(family: HFFamily, config: ReaLModelConfig) -> WeightMapping:
    """The mapping of a critic's scalar head."""
    name = head_weight_name(config)
    return next(mapping for mapping in weight_mappings(family, config) if name in mapping.parameters)
