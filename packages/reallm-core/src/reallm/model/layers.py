"""The small layers: linear, norms, activations, MLPs, embedding.

Each says how its parameters may be split, and with `recompute` that selective checkpointing computes it again.

Shapes: T packed tokens, E hidden, F intermediate, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reallm.model.config import ReaLModelConfig
from reallm.model.ops import ActivationFunction, gated, rms_norm
from reallm.model.shard import Shard, Shards

ACTIVATION_FUNCTIONS: dict[str, ActivationFunction] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


class Linear(nn.Linear):
    """`x @ weight.T + bias`, with `weight` [out, in].

    `split` is what tensor parallelism may divide: outputs (`"out"`: rows of the weight, and the bias) or
    inputs (`"in"`: columns of the weight; the bias is added once). `unit` outputs or inputs stay together.
    """

    def __init__(self, n_in: int, n_out: int, *, bias: bool = False, split: str, unit: int = 1) -> None:
        super().__init__(n_in, n_out, bias=bias)
        rows = split == "out"
        self.shards: Shards = {"weight": Shard(0 if rows else 1, unit)}
        if bias:
            self.shards["bias"] = Shard(0, unit) if rows else None

    def reset_parameters(self) -> None:
        """Nothing: `Transformer.init_weights` or a checkpoint gives the values."""


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dim (Zhang and Sennrich, 2019), computed in at least float32."""

    recompute = True

    def __init__(self, size: int, eps: float, shard: Shard | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps
        self.shards: Shards = {"weight": shard}

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.Module):
    """Layer norm with bias over the last dim (Ba et al., 2016)."""

    recompute = True

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size))
        self.eps = eps
        self.shards: Shards = {"weight": None, "bias": None}

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


def make_norm(config: ReaLModelConfig) -> nn.Module:
    """The norm that `config.norm` names, over the hidden dim."""
    kinds = {"rms": RMSNorm, "layer": LayerNorm}
    return kinds[config.norm](config.hidden_size, config.norm_eps)


class Activation(nn.Module):
    """`act(x)`, or `act(gate) * up`."""

    recompute = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = ACTIVATION_FUNCTIONS[name]

    def forward(self, x: Tensor, up: Tensor | None = None) -> Tensor:
        return self.function(x) if up is None else gated(x, up, self.function)


class GatedMLP(nn.Module):
    """`down(act(gate(x)) * up(x))` (Shazeer, 2020: GLU variants)."""

    def __init__(self, config: ReaLModelConfig) -> None:
        super().__init__()
        size, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate = Linear(size, inner, bias=bias, split="out")
        self.up = Linear(size, inner, bias=bias, split="out")
        self.down = Linear(inner, size, bias=bias, split="in")
        self.act = Activation(config.activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x), self.up(x)))


class PlainMLP(nn.Module):
    """`down(act(up(x)))`."""

    def __init__(self, config: ReaLModelConfig) -> None:
        super().__init__()
        size, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.up = Linear(size, inner, bias=bias, split="out")
        self.down = Linear(inner, size, bias=bias, split="in")
        self.act = Activation(config.activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


def make_mlp(config: ReaLModelConfig) -> nn.Module:
    """The MLP that `config.mlp` names."""
    kinds = {"gated": GatedMLP, "plain": PlainMLP}
    return kinds[config.mlp](config)


class TokenTable(nn.Module):
    """A [V, E] table: token embeddings, looked up by `F.embedding`."""

    def __init__(self, config: ReaLModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.shards: Shards = {"weight": Shard(0)}

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)
