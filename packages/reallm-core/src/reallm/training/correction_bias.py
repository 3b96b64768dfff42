"""Correction biases of routers, moved towards an even load of the experts (Wang et al., 2024: Auxiliary-Loss-Free Load
Balancing).

Shapes: L layers with experts, X experts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from reallm.errors import ConfigError
from reallm.model.moe.layer import MoEMLP
from reallm.model.transformer import Transformer
from reallm.parallel.fsdp import to_local
from reallm.parallel.mesh import Mesh
from reallm.parallel.sharding import local_boxes


class CorrectionBiases:
    """Steps the correction biases of a network by the number of tokens that have chosen each expert.

    After each optimizer step a bias grows by `rate` if its expert got fewer tokens of the whole batch than the mean of
    the layer, and shrinks by it if it got more. Biases in half precision are stepped in float32.

    Args:
        network: the network, or this rank's part of it.
        rate: amount of a step; 0.001 for most of the training of DeepSeek-V3.
        mesh: the ranks that share the network; None if this process holds all of it.

    Raises:
        ConfigError: the rate is negative, the routers have no correction bias, or adapters are trained.
    """

    def __init__(self, network: Transformer, rate: float, mesh: Mesh | None) -> None:
        config, key = network.config, f"model.moe_bias_update_rate={rate}"
        if not rate >= 0:
            raise ConfigError(f"{key} must be at least 0")
        if config.moe is None or not config.moe.correction_bias:
            raise ConfigError(f"{key} is for models whose router has a correction bias; leave it out")
        if config.lora is not None:
            raise ConfigError(f"{key} changes the base model, which adapters leave as it is; leave it out")
        self._rate, self._mesh, self._n_experts = rate, mesh, config.moe.n_experts
        names = [f"{path}.router.correction_bias" for path, each in network.named_modules() if isinstance(each, MoEMLP)]
        self._parameters = {name: network.get_parameter(name) for name in names}
        self._stepped = {name: _at_least_float32(each) for name, each in self._parameters.items()}
        self._boxes = {} if mesh is None else local_boxes(config, mesh.layout, mesh.rank)

    @torch.no_grad()
    def step(self, counts: Tensor | None) -> None:
        """Take a step.

        Args:
            counts: [L, X], the number of tokens of this rank's micro-batches that have chosen each expert; None: none.
        """
        if not self._stepped:
            return
        if counts is None:
            device = next(iter(self._stepped.values())).device
            counts = torch.zeros(len(self._stepped), self._n_experts, dtype=torch.int64, device=device)
        if self._mesh is not None and self._mesh.layout.dp > 1:
            dist.all_reduce(counts, group=self._mesh.dp)
        missing = counts.double().mean(dim=1, keepdim=True) - counts
        for (name, stepped), change in zip(self._stepped.items(), self._rate * missing.sign(), strict=True):
            stepped.add_(change[self._boxes[name].slices] if self._boxes else change)
            self._copy_to_parameter(name)

    def weights(self) -> dict[str, Tensor]:
        """The tensors that are stepped, by parameter name. Not copies."""
        return dict(self._stepped)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Restore the result of `weights`; parameters that it lacks stay as they are."""
        for name, stepped in self._stepped.items():
            stepped.copy_(weights.get(name, to_local(self._parameters[name].detach())))
            self._copy_to_parameter(name)

    def _copy_to_parameter(self, name: str) -> None:
        local = to_local(self._parameters[name].detach())
        if local.dtype != self._stepped[name].dtype:
            local.copy_(self._stepped[name])


def _at_least_float32(parameter: nn.Parameter) -> Tensor:
    """The local part of a parameter, in the same memory unless it is in half precision."""
    local = to_local(parameter.detach())
    return local.to(torch.promote_types(local.dtype, torch.float32))
