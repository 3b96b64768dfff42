"""The small layers: linear, norms, activations, MLPs, embedding.

What a layer says of itself, a family's own layers too:

- `shards`: how each parameter may be split (see `model.shard`); every parameter needs one.
- `split`: which of its inputs and outputs are then parts of the whole.
- `sees_part = True`: what it acts on is a part of the whole then, such as some heads, also for those of its parameters
  that are not split: each rank's gradient of them is a summand.
- `recompute = True`: selective checkpointing computes it again in the backward pass. It takes tensors and gives one.
- `weight_decay = False`: its parameters are not decayed. Vectors and biases never are.
- `fresh_parameter(name, generator)`: the initial value of a parameter that does not start as others do: matrices are
  normal, vectors one, biases zero.
- `nn.Parameter(..., requires_grad=False)`: loaded and saved, and never trained: a buffer of the checkpoint.

Shapes: T packed tokens, E hidden, F intermediate, V vocabulary, H heads, D head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reallm.errors import DataError
from reallm.model.config import ReaLModelConfig, is_own_class
from reallm.model.ops import ActivationFunction, gated, rms_norm
from reallm.model.packed import PackedSequences
from reallm.model.sharding import Shard, Shards, Split
from reallm.references import resolve

ACTIVATION_FUNCTIONS: dict[str, ActivationFunction] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu_10": lambda x: F.gelu(x).clamp(-10, 10),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "laplace": lambda x: 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0)))),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "linear": torch.clone,  # a new tensor, as of all others: what comes out may be changed in place
}


class Linear(nn.Linear):
    """`x @ weight.T + bias`, with `weight` [out, in].

    `split` is what tensor parallelism may divide: outputs (`"out"`: rows of the weight, and the bias) or
    inputs (`"in"`: columns of the weight; results are added up over the parts, the bias is added once). `unit` outputs
    or inputs stay together.
    """

    def __init__(self, n_in: int, n_out: int, *, bias: bool = False, split: Split, unit: int = 1) -> None:
        super().__init__(n_in, n_out, bias=bias)
        self.split = split
        rows = split == "out"
        self.shards: Shards = {"weight": Shard(0 if rows else 1, unit)}
        if bias:
            self.shards["bias"] = Shard(0, unit) if rows else None

    def reset_parameters(self) -> None:
        """Nothing: `Transformer.init_weights` or a checkpoint gives the values."""


class Norm(nn.Module):
    """What norms over the last dim have in common: `weight + offset` and a bias, each of which may be missing.

    A norm over a dim that is split says so with `shard`; it is then computed over all parts together.
    """

    recompute = True
    weight_decay = False

    def __init__(
        self,
        size: int | tuple[int, ...],
        eps: float,
        *,
        weight: bool = True,
        bias: bool = False,
        offset: float = 0.0,
        shard: Shard | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size)) if weight else None
        self.bias = nn.Parameter(torch.empty(size)) if bias else None
        self.eps = eps
        self.offset = offset
        self.shards: Shards = {name: shard for name, _ in self.named_parameters()}
        self.over_shards = shard is not None

    def fresh_parameter(self, name: str, generator: torch.Generator) -> Tensor | None:
        """A fresh norm scales by 1."""
        return None if self.weight is None or name != "weight" else torch.full(self.weight.shape, 1.0 - self.offset)


class RMSNorm(Norm):
    """Root-mean-square norm (Zhang and Sennrich, 2019), computed in at least float32."""

    def forward(self, x: Tensor) -> Tensor:
        out = rms_norm(x, self.weight, self.eps, self.offset)
        return out if self.bias is None else out + self.bias


class LayerNorm(Norm):
    """Layer norm (Ba et al., 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.weight is None or not self.offset else self.weight + self.offset
        return F.layer_norm(x, (x.shape[-1],), weight, self.bias, self.eps)


class PerHeadNorm(Norm):
    """A norm of each head by itself, with weights [H, D] of its own for each: `x` [T, H, D]."""

    weight: nn.Parameter

    def __init__(self, config: ReaLModelConfig, n_heads: int) -> None:
        size = n_heads, config.head_dim
        super().__init__(size, config.norm_eps, bias=config.qk_norm_bias, offset=config.norm_offset)
        self.shards = dict.fromkeys(self.shards, Shard(0))
        norms: dict[str, Callable[..., Tensor]] = {"rms": F.rms_norm, "layer": F.layer_norm}
        self.norm = norms[config.norm]

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(x, (x.shape[-1],), eps=self.eps) * (self.weight + self.offset)
        return out if self.bias is None else out + self.bias


def make_norm(config: ReaLModelConfig) -> nn.Module:
    """The norm that `config.norm` names, over the hidden dim."""
    if is_own_class(config.norm):
        return own_layer(config.norm, config, config.hidden_size)
    return _norm(config, config.hidden_size, bias=config.norm_bias)


def make_qk_norm(config: ReaLModelConfig, n_heads: int) -> nn.Module:
    """The norm of queries or keys: over [T, H, D], or over [T, H * D] if it is over all heads together."""
    whole = config.qk_norm == "whole"
    if config.qk_norm is None:
        return nn.Identity()
    if config.qk_norm == "per_head":
        return PerHeadNorm(config, n_heads)
    size = n_heads * config.head_dim if whole else config.head_dim
    norm: nn.Module
    if is_own_class(config.norm):
        norm = own_layer(config.norm, config, size)
    else:
        norm = _norm(config, size, bias=config.qk_norm_bias, shard=Shard(0, config.head_dim) if whole else None)
    norm.sees_part = True  # type: ignore[assignment] # modules declare nothing but tensors and modules
    return norm


def _norm(config: ReaLModelConfig, size: int, *, bias: bool, shard: Shard | None = None) -> Norm:
    kinds = {"rms": RMSNorm, "layer": LayerNorm}
    return kinds[config.norm](
        size, config.norm_eps, weight=config.norm_weight, bias=bias, offset=config.norm_offset, shard=shard
    )


def own_layer(path: str, *arguments: object) -> nn.Module:
    """An object of a family's own class, `"package.module:Class"`.

    Raises:
        PluginError: the class cannot be imported.
    """
    layer = resolve(path)(*arguments)
    assert isinstance(layer, nn.Module), f"{path} is not a torch.nn.Module"
    return layer


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

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.gate = Linear(size, inner, bias=config.gate_bias, split="out")
        self.up = Linear(size, inner, bias=config.up_bias, split="out")
        self.down = Linear(inner, size, bias=config.down_bias, split="in")
        self.act: nn.Module = Activation(config.activation)

    def forward(self, x: Tensor, context: object) -> Tensor:
        return self.down(self.act(self.gate(x), self.up(x)))


class PlainMLP(nn.Module):
    """`down(act(up(x)))`."""

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.up = Linear(size, inner, bias=config.up_bias, split="out")
        self.down = Linear(inner, size, bias=config.down_bias, split="in")
        self.act: nn.Module = Activation(config.activation)

    def forward(self, x: Tensor, context: object) -> Tensor:
        return self.down(self.act(self.up(x)))


class VocabBias(nn.Module):
    """The bias [V] of an output head whose matrix is the embedding's."""

    def __init__(self, config: ReaLModelConfig) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(config.vocab_size))
        self.shards: Shards = {"bias": Shard(0)}


class TokenEmbedding(nn.Module):
    """Token embeddings [V, E]."""

    def __init__(self, config: ReaLModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.shards: Shards = {"weight": Shard(0)}

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)


class PositionEmbedding(nn.Module):
    """Learned position embeddings [P, E]; position `p` has row `p + offset`."""

    def __init__(self, config: ReaLModelConfig) -> None:
        super().__init__()
        self.offset = config.position_offset
        self.weight = nn.Parameter(torch.empty(config.max_positions + self.offset, config.hidden_size))
        self.shards: Shards = {"weight": None}

    def forward(self, seqs: PackedSequences) -> Tensor:
        longest, n_positions = max(seqs.totals, default=0), len(self.weight) - self.offset
        if longest > n_positions:  # embedding would read beyond the table
            raise DataError(
                f"a sequence has {longest} tokens, but the model has learned {n_positions} positions; shorten it"
            )
        return F.embedding(seqs.positions + self.offset, self.weight)
