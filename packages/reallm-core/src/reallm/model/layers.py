"""Small layers: linear, norms, activations, MLPs, embeddings.

Attributes by which a layer, including a family's custom layers, declares its properties to the core:

- `shards`: how tensor parallelism may split each parameter (see `model.sharding`); every parameter needs an entry.
- `split`: which of its inputs and outputs are then partial; see `model.sharding.Split`.
- `partial_grad = True`: under tensor parallelism it acts on a part of the features or heads, even if its parameters are
  replicated: each rank's gradient of these parameters is a partial sum.
- `recompute = True`: selective checkpointing recomputes it in the backward pass. It takes tensors and returns one.
- `weight_decay = False`: its parameters are exempt from weight decay, as vectors and biases always are.
- `fresh_parameter(name, generator)`: initial value of a parameter that differs from the default, which is normal for
  matrices, one for vectors and zero for biases.
- `cache_spec`, of an attention layer: the tensors that it keeps for decoding; see `model.attention.kv_cache`.
- `layout_blocker`, of a block: the reason that tensor and pipeline parallelism cannot split a network with it.
- `compile_blocker`, of a block: what `torch.compile` does not work with.
- `tp_units`: units, such as heads, that tensor parallelism divides evenly; see `model.sharding.TPUnits`.
- `exact = False`, which `model.exact.ExactMode` sets to True: it has another way to compute, whose result for a token
  is the same, bit for bit, whatever else the pass computes.
- `nn.Parameter(..., requires_grad=False)`: loaded and saved, never trained: a buffer of the checkpoint.

Shapes: T packed tokens, E hidden, F intermediate, V vocabulary, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reallm.errors import ConfigError, DataError
from reallm.foreign_files import reason_of
from reallm.machine_errors import raise_shortage
from reallm.model.activations import ACTIVATION_FUNCTIONS, exact_activation
from reallm.model.config import ReaLModelConfig, is_custom_class
from reallm.model.ops import gated, rms_norm
from reallm.model.packed import PackedSequences
from reallm.model.products.fixed_rows import in_fixed_rows
from reallm.model.products.linear import joint_linear, linear
from reallm.model.products.prepacked import DerivedWeight, PrepackedWeight
from reallm.model.sharding import Shard, Shards, Split, as_split
from reallm.references import resolve


class Linear(nn.Linear):
    """`x @ weight.T + bias`, with `weight` [out, in].

    Args:
        n_in: number of inputs.
        n_out: number of outputs.
        bias: whether the layer has a bias.
        split: how tensor parallelism may split the layer. `"column"`: outputs, with rows of the weight and the bias;
            `"row"`: inputs, with columns of the weight; outputs are summed over the ranks, and the bias is added once;
            None: not at all, every rank computes the same.
        unit: number of outputs or inputs that stay together, such as those of a head.
    """

    exact = False
    prepacked: PrepackedWeight | None = None
    """Holder of the weight's prepacked form, in a context of `Transformer.prepacked_weights`."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool = False, split: Split | None, unit: int = 1) -> None:
        super().__init__(n_in, n_out, bias=bias)
        self.split = None if split is None else as_split(split, type(self).__qualname__)
        splits_outputs = self.split == "column"
        self.shards: Shards = {"weight": None if split is None else Shard(0 if splits_outputs else 1, unit)}
        if bias:
            self.shards["bias"] = Shard(0, unit) if splits_outputs else None

    def reset_parameters(self) -> None:
        """Do nothing: values come from `Transformer.init_weights` or a checkpoint."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, self.prepacked, exact=self.exact)

    @property
    def multiplied(self) -> Tensor | DerivedWeight:
        """The weight that inputs are multiplied by without gradients."""
        return self.weight

    @property
    def is_plain(self) -> bool:
        """Whether calling it without gradients does nothing but multiply by `multiplied` and add the bias.

        It then has no hooks and no `forward` of its own, and is of a class of the core.
        """
        return self.only_multiplies and not (
            "forward" in self.__dict__ or self._forward_pre_hooks or self._forward_hooks or self._backward_hooks
        )

    @property
    def only_multiplies(self) -> bool:
        """Whether the class's `forward` does that; subclasses of the core say so."""
        return type(self) is Linear


class Projections(nn.Module):
    """Base class of layers that begin with several linear layers of the same input."""

    projections: ClassVar[tuple[str, ...]]
    """Names of these linear layers."""
    prepacked: PrepackedWeight | None = None
    """Holder of the prepacked form of their weights as one, in a context of `Transformer.prepacked_weights`."""

    def project(self, x: Tensor) -> Sequence[Tensor]:
        """The outputs of the linear layers for `x` [T, E]; by one product of prepacked weights, where there are any."""
        if self.prepacked is not None and (layers := self.joint_layers):
            weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
            multiplied = [layer.multiplied for layer in layers]
            outputs = joint_linear(x, weights, biases, self.prepacked, multiplied=multiplied, exact=layers[0].exact)
            if outputs is not None:
                return outputs
        return [getattr(self, name)(x) for name in self.projections]

    @property
    def joint_layers(self) -> list[Linear]:
        """The linear layers, if calling them does nothing but multiply; else an empty list."""
        layers = [getattr(self, name, None) for name in self.projections]
        plain = [layer for layer in layers if isinstance(layer, Linear) and layer.is_plain]
        return plain if len(plain) == len(layers) else []


class SharedByHeads(nn.Module):
    """Identity for a tensor that all heads of an attention layer, or features of an MLP, read, such as a shared key.

    A rank has some of them: under tensor parallelism the gradients of the ranks are summed.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x


class PerHead(nn.Module):
    """A constant of each head, such as a slope: computed and not loaded, never trained, in no checkpoint.

    Under tensor parallelism a rank has the values of the heads that it has; `PerHead(range(n_heads))` says which these
    are. Of fewer heads than ranks, as there may be KV heads, several ranks have the same.

    Args:
        values: a number of each head of the whole layer, or equally many numbers.
    """

    def __init__(self, values: Sequence[float] | Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.values: tuple[Any, ...] = tuple(values)
        """Values of the heads on this rank."""

    def keep(self, heads: range) -> None:
        """Keep only the values of some heads."""
        self.values = self.values[heads.start : heads.stop]

    def forward(self, x: Tensor) -> Tensor:
        """The values as a tensor [H, ...] of the dtype of `x`, where `x` is."""
        return torch.tensor(self.values, dtype=x.dtype, device=x.device)


class Norm(nn.Module):
    """Base class of norms over the last dim: `weight + offset` and a bias, each of which may be missing.

    With `shard` the norm is over a dim that tensor parallelism splits; its statistics are then reduced over the ranks.
    """

    recompute = True
    weight_decay = False
    exact = False

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
        self.over_sharded_dim = shard is not None

    def forward(self, x: Tensor) -> Tensor:
        """The norm of each row of `x` [T, ...]."""
        # on a CPU rows are computed one by one in any mode
        return in_fixed_rows(self.norm_rows, x) if self.exact and not x.is_cpu else self.norm_rows(x)

    def norm_rows(self, x: Tensor) -> Tensor:
        """`forward`, for subclasses to define."""
        raise NotImplementedError

    def fresh_parameter(self, name: str, generator: torch.Generator) -> Tensor | None:
        """Initial value of the weight, with which the norm scales by 1."""
        return None if self.weight is None or name != "weight" else torch.full(self.weight.shape, 1.0 - self.offset)


class RMSNorm(Norm):
    """Root-mean-square norm (Zhang and Sennrich, 2019), computed in at least float32."""

    def norm_rows(self, x: Tensor) -> Tensor:
        out = rms_norm(x, self.weight, self.eps, self.offset)
        return out if self.bias is None else out + self.bias


class LayerNorm(Norm):
    """Layer norm (Ba et al., 2016)."""

    def norm_rows(self, x: Tensor) -> Tensor:
        weight = self.weight if self.weight is None or not self.offset else self.weight + self.offset
        return F.layer_norm(x, (x.shape[-1],), weight, self.bias, self.eps)


class PerHeadNorm(Norm):
    """Norm over each head of `x` [T, H, D], with separate weights [H, D]."""

    weight: nn.Parameter

    def __init__(self, config: ReaLModelConfig, n_heads: int) -> None:
        size = n_heads, config.head_dim
        super().__init__(size, config.norm_eps, bias=config.qk_norm_bias, offset=config.norm_offset)
        self.shards = dict.fromkeys(self.shards, Shard(0))
        norms: dict[str, Callable[..., Tensor]] = {"rms": F.rms_norm, "layer": F.layer_norm}
        self.norm = norms[config.norm]

    def norm_rows(self, x: Tensor) -> Tensor:
        out = self.norm(x, (x.shape[-1],), eps=self.eps) * (self.weight + self.offset)
        return out if self.bias is None else out + self.bias


def make_norm(config: ReaLModelConfig) -> nn.Module:
    """Norm over the hidden dim, of the kind that `config.norm` names."""
    if is_custom_class(config.norm):
        return custom_layer(config.norm, config, config.hidden_size)
    return _norm(config, config.hidden_size, bias=config.norm_bias)


def make_qk_norm(config: ReaLModelConfig, n_heads: int) -> nn.Module:
    """Norm of queries or keys: of [T, H, D], or of [T, H * D] if `config.qk_norm` is "whole"."""
    whole = config.qk_norm == "whole"
    if config.qk_norm is None:
        return nn.Identity()
    if config.qk_norm == "per_head":
        return PerHeadNorm(config, n_heads)
    size = n_heads * config.head_dim if whole else config.head_dim
    norm: nn.Module
    if is_custom_class(config.norm):
        norm = custom_layer(config.norm, config, size)
    else:
        norm = _norm(config, size, bias=config.qk_norm_bias, shard=Shard(0, config.head_dim) if whole else None)
    norm.partial_grad = True  # type: ignore[assignment] # modules declare nothing but tensors and modules
    return norm


def _norm(config: ReaLModelConfig, size: int, *, bias: bool, shard: Shard | None = None) -> Norm:
    kinds = {"rms": RMSNorm, "layer": LayerNorm}
    return kinds[config.norm](
        size, config.norm_eps, weight=config.norm_weight, bias=bias, offset=config.norm_offset, shard=shard
    )


def custom_layer(path: str, *arguments: object) -> nn.Module:
    """An instance of a family's custom class, `"package.module:Class"`.

    Raises:
        PluginError: the class cannot be imported.
        ConfigError: torch or arithmetic refuses the sizes that it is given.
    """
    layer_class = resolve(path)
    try:
        layer = layer_class(*arguments)
    except (RuntimeError, ArithmeticError, TypeError) as error:
        raise_shortage(error)
        # a negative number of features, a division by no heads, more than 2^63 of anything
        if isinstance(error, TypeError) and "Overflow" not in str(error):
            raise
        raise ConfigError(
            f"{path} cannot be built of these sizes ({reason_of(error)}); compare config.json with the original"
        ) from error
    assert isinstance(layer, nn.Module), f"{path} is not a torch.nn.Module"
    return layer


class Activation(nn.Module):
    """`act(x)`, or `act(gate) * up` (Shazeer, 2020: GLU variants)."""

    recompute = True
    exact = False

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function, self.exact_function = ACTIVATION_FUNCTIONS[name], exact_activation(name)

    def forward(self, x: Tensor, up: Tensor | None = None) -> Tensor:
        function = self.exact_function if self.exact else self.function
        return function(x) if up is None else gated(x, up, function)


def make_activation(config: ReaLModelConfig, block: int) -> nn.Module:
    """The activation of an MLP: a function of the outputs of `gate` and `up`, or of `up` alone."""
    if is_custom_class(config.activation):
        return custom_layer(config.activation, config, block)
    return Activation(config.activation)


class GatedMLP(Projections):
    """`down(act(gate(x), up(x)))`, with `act(gate) * up` for activations that the configuration names."""

    projections = "gate", "up"

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.gate = Linear(size, inner, bias=config.gate_bias, split="column")
        self.up = Linear(size, inner, bias=config.up_bias, split="column")
        self.down = Linear(inner, size, bias=config.down_bias, split="row")
        self.act = make_activation(config, block)

    def forward(self, x: Tensor, context: object) -> Tensor:
        return self.down(self.act(*self.project(x)))


class PlainMLP(nn.Module):
    """`down(act(up(x)))`."""

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.up = Linear(size, inner, bias=config.up_bias, split="column")
        self.down = Linear(inner, size, bias=config.down_bias, split="row")
        self.act = make_activation(config, block)

    def forward(self, x: Tensor, context: object) -> Tensor:
        return self.down(self.act(self.up(x)))


class VocabBias(nn.Module):
    """Bias [V] of an output head that is tied to the embedding."""

    def __init__(self, config: ReaLModelConfig) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(config.vocab_size))
        self.shards: Shards = {"bias": Shard(0)}


class TokenEmbedding(nn.Module):
    """Token embedding table [V, E], or [V, `size`]."""

    def __init__(self, config: ReaLModelConfig, size: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, size or config.hidden_size))
        self.shards: Shards = {"weight": Shard(0)}

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)


class PositionEmbedding(nn.Module):
    """Learned position embedding table [P, E]; position `p` has row `p + offset`."""

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
