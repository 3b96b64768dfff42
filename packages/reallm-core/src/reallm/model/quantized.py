"""Linear layers that hold their weight in 4 bits, under adapters (QLoRA; Dettmers et al., 2023, arXiv 2305.14314)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from reallm.errors import ConfigError
from reallm.model.layers import Linear
from reallm.model.lora import LoRALinear
from reallm.model.moe.expert_linear import ExpertLinear
from reallm.model.products.linear import linear
from reallm.model.products.nf4 import QuantizedWeight


class QuantizedLinear(Linear):
    """A linear layer whose weight is no parameter but a `QuantizedWeight`, set when a checkpoint is loaded.

    The bias is that of the layer that it replaces.
    """

    compile_blocker = "a base model in 4 bits"
    quantized: QuantizedWeight | None = None

    def __init__(self, base: Linear) -> None:
        nn.Module.__init__(self)  # the parameters are those of `base`
        self.in_features, self.out_features = base.in_features, base.out_features
        self.bias, self.split = base.bias, base.split
        self.shards = {name: shard for name, shard in base.shards.items() if name != "weight"}

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # a parameter of other linear layers
        """The dequantized weight [out, in], made anew each time: for layers that do more than call this one."""
        return self._held.dequantize()

    def forward(self, x: Tensor) -> Tensor:
        return self._held.linear(x, self.bias)

    @property
    def _held(self) -> QuantizedWeight:
        assert self.quantized is not None, "the weight has not been loaded"
        return self.quantized


class QuantizedLoRALinear(QuantizedLinear, LoRALinear):  # type: ignore[override]  # the weight is no parameter
    """A linear layer with an adapter beside a quantized weight."""

    def __init__(self, base: LoRALinear) -> None:
        super().__init__(base)
        self.lora_a, self.lora_b, self.lora_magnitude = base.lora_a, base.lora_b, None
        self.scaling, self.dropout, self.partial_grad = base.scaling, base.dropout, base.partial_grad
        self.sum_over_ranks = None

    def forward(self, x: Tensor) -> Tensor:
        product = super().forward(x)
        if not self.enabled:
            return product
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout else x
        update = linear(linear(dropped, self.lora_a.to(x.dtype)), self.lora_b.to(x.dtype))
        return product.add(update, alpha=self.scaling)


def quantize_linear_layers(block: nn.Module) -> None:
    """Let the linear layers of a block, with and without adapters, hold their weight quantized.

    Layers of classes of a family's own, routers and norms stay as they are.

    Raises:
        ConfigError: the block has experts, whose weights are not those of linear layers.
    """
    for path, module in list(block.named_modules()):
        if isinstance(module, ExpertLinear):
            raise ConfigError("quantize_base=nf4 does not quantize experts, which are most of this model; leave it out")
        if type(module) in (Linear, LoRALinear):
            owner, _, name = path.rpartition(".")
            kind = QuantizedLoRALinear if isinstance(module, LoRALinear) else QuantizedLinear
            setattr(block.get_submodule(owner), name, kind(module))


def quantized_layers(network: nn.Module) -> dict[str, QuantizedLinear]:
    """Name that the weight has in a checkpoint -> the layer that holds it quantized."""
    return {f"{path}.weight": each for path, each in network.named_modules() if isinstance(each, QuantizedLinear)}


def linear_layers_with_weights(network: nn.Module) -> list[Linear]:
    """The linear layers whose weights are parameters."""
    return [each for each in network.modules() if isinstance(each, Linear) and not isinstance(each, QuantizedLinear)]
