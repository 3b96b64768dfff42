"""Low-rank adapters of experts and of their router."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reallm.errors import ConfigError
from reallm.model.adapted import AdaptedLayer, LowRank
from reallm.model.lora_config import LoRAConfig
from reallm.model.moe.expert_linear import ExpertLinear
from reallm.model.moe.router import Router


class LoRAExpertLinear(AdaptedLayer, ExpertLinear):
    """A linear layer of each expert, with an adapter of each.

    Under tensor parallelism, as `LoRALinear`: one of A and B is whole on every rank, and its gradient a partial sum.

    Raises:
        ConfigError: the adapters are to have dropout or DoRA, which PEFT's of experts cannot have.
    """

    def __init__(self, base: ExpertLinear, config: LoRAConfig) -> None:
        nn.Module.__init__(self)  # the parameters are those of `base`
        self.partial_grad = True
        _check(config, "experts")
        self.weight, self.bias = base.weight, base.bias
        self.add_matrices(config, base.shards["weight"])
        self.shards |= base.shards

    @property
    def adapter(self) -> LowRank | None:
        return LowRank(self.lora_a, self.lora_b, self.scaling) if self.enabled else None


class LoRARouter(AdaptedLayer, Router):
    """A router with an adapter.

    Raises:
        ConfigError: as for `LoRAExpertLinear`.
    """

    def __init__(self, base: Router, config: LoRAConfig) -> None:
        nn.Module.__init__(self)  # the parameters are those of `base`
        _check(config, "routers")
        self.moe, self.weight, self.bias = base.moe, base.weight, base.bias
        self.correction_bias = base.correction_bias
        self.add_matrices(config, None)
        self.shards |= base.shards

    def effective_weight(self) -> Tensor:
        if not self.enabled:
            return super().effective_weight()
        return self.weight + (self.scaling * (self.lora_b @ self.lora_a)).to(self.weight.dtype)

    def fresh_parameter(self, name: str, generator: torch.Generator) -> Tensor | None:
        found = AdaptedLayer.fresh_parameter(self, name, generator)
        return Router.fresh_parameter(self, name, generator) if found is None else found


def _check(config: LoRAConfig, what: str) -> None:
    for name, value in (("dropout", config.dropout), ("dora", config.dora)):
        if value:
            raise ConfigError(
                f"{name}={value} does not work with adapters of {what}, in PEFT neither; leave it out, or name other "
                "layers in targets"
            )
