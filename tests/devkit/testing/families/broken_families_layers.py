"""Layers of a family's own, each with one mistake that authors make."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from reallm_hf_apertus.layers import XIELU
from torch import Tensor, nn

from reallm.model.attention.functional import AttentionSpec, attend_packed, attend_sequence
from reallm.model.attention.gqa import Attention
from reallm.model.attention.kv_cache import CacheTensor, store
from reallm.model.attention.states import read_states, write_states
from reallm.model.block import Block
from reallm.model.config import ReaLModelConfig
from reallm.model.forward_context import ForwardContext
from reallm.model.layers import GatedMLP, Linear, RMSNorm
from reallm.model.packed import PackedSequences
from reallm.model.sharding import Shard
from reallm_hf_lfm2.layers import ShortConv


class GoodMLP(GatedMLP):
    """The core's own, under another name."""


class SplitAlongInputs(GatedMLP):
    """Its first projection has outputs that are parts, but says that its inputs are."""

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__(config, block)
        self.gate.shards = {"weight": Shard(1)}


class NotAddedUp(GatedMLP):
    """Its last projection takes parts of the inputs, but says that its outputs are parts."""

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__(config, block)
        self.down = Linear(config.intermediate_size, config.hidden_size, split="column")


class FirstSlopes(Attention):
    """Every rank has the slopes of the first heads."""

    def of_heads(self, spec: AttentionSpec) -> AttentionSpec:
        assert spec.slopes is not None
        return spec.of_heads(slopes=spec.slopes[: self.q.weight.shape[0] // self.head_dim])


class SumsParts(GatedMLP):
    """Its matrices are split by inner features, and it takes whole inputs, but it says that these are parts."""

    split = "row"

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__(config, block)
        for projection in (self.gate, self.up, self.down):
            del projection.split


class SplitsNothing(GatedMLP):
    """It is split, as it says, but none of its matrices is."""

    split = "column_row"

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__(config, block)
        for projection in (self.gate, self.up, self.down):
            projection.shards = {"weight": None}
            del projection.split


class MixesHeads(Attention):
    """Queries may be split inside of a head."""

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__(config, block)
        for projection in (self.q, self.k, self.v):
            projection.shards = {"weight": None}
            projection.split = "column"
        self.o.shards = {"weight": Shard(1, config.head_dim)}


class LosesGradients(GatedMLP):
    """The gate learns nothing."""

    def forward(self, x: Tensor, context: object) -> Tensor:
        return self.down(self.act(self.gate(x).detach(), self.up(x)))


class CountsCalls(GatedMLP):
    """In training it computes something else each time that it is called, as with a state that a call changes."""

    n_calls = 0

    def forward(self, x: Tensor, context: object) -> Tensor:
        self.n_calls += self.training
        return super().forward(x, context) * (1 + 0.01 * (self.n_calls % 3))


class StartsLarge(RMSNorm):
    """Weights that are far too large to begin with."""

    def __init__(self, config: ReaLModelConfig, size: int) -> None:
        super().__init__(size, config.norm_eps)

    def fresh_parameter(self, name: str, generator: torch.Generator) -> Tensor:
        return torch.full(self.weight.shape, 100.0)


class LeaksAcrossSequences(Attention):
    """Attends to the whole pack as if it were one sequence."""

    def forward(self, x: Tensor, context: ForwardContext, cache: Any = None) -> Tensor:
        if cache is None:
            context = dataclasses.replace(context, seqs=PackedSequences.from_lengths([len(x)]))
        return super().forward(x, context, cache)


class ForgetsWhatItSaw(Attention):
    """With a cache, it attends to the new tokens only."""

    def forward(self, x: Tensor, context: ForwardContext, cache: Any = None) -> Tensor:
        q, k, v = self.heads(self.q(x), self.q_norm), self.heads(self.k(x), self.k_norm), self.heads(self.v(x))
        rotation = context.rotations[self.spec.rotation or 0]
        q, k = rotation(q), rotation(k)
        if cache is not None:
            store(cache, (k, v), context.seqs.cached_lengths, context.seqs.lengths)
        alone = PackedSequences.from_lengths(context.seqs.lengths)
        return self.o(attend_packed(q, k, v, alone, self.spec).flatten(-2))


class CountsTokens(Attention):
    """It counts the tokens of a sequence in the cache, at its first token, where copies find the count of another."""

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__(config, block)
        self.cache_spec = (*self.cache_spec, CacheTensor((1,)))

    def forward(self, x: Tensor, context: ForwardContext, cache: Any = None) -> Tensor:
        q, k, v = self.heads(self.q(x), self.q_norm), self.heads(self.k(x), self.k_norm), self.heads(self.v(x))
        rotation, seqs = context.rotations[self.spec.rotation or 0], context.seqs
        q, k = rotation(q), rotation(k)
        if cache is None:
            return self.o(attend_packed(q, k, v, seqs, self.spec).flatten(-2))
        keys, values, counts = cache
        cached = [int(counts[row, 0, 0]) if n else 0 for row, n in enumerate(seqs.cached_lengths)]
        store((keys, values), (k, v), cached, seqs.lengths)
        outputs = []
        for row, queries in enumerate(q.split(list(seqs.lengths))):
            counts[row, 0, 0] = total = cached[row] + len(queries)
            outputs.append(attend_sequence(queries, keys[row, :, :total], values[row, :, :total], self.spec))
        return self.o(torch.cat(outputs).flatten(-2))


class ConvolvesThePack(ShortConv):
    """Convolves the whole pack as if it were one sequence."""

    def forward(self, hidden: Tensor, context: ForwardContext, cache: Any = None) -> Tensor:
        if cache is None:
            context = dataclasses.replace(context, seqs=PackedSequences.from_lengths([len(hidden)]))
        return super().forward(hidden, context, cache)


class BeginsEachPiece(ShortConv):
    """Reads states for single tokens only: each piece of a prompt begins with zeros."""

    def forward(self, hidden: Tensor, context: ForwardContext, cache: Any = None) -> Tensor:
        b, c, x = self.project(hidden)
        states = read_states(cache, self.cache_spec, context.seqs) if context.seqs.max_length == 1 else None
        y, after = self.conv(b * x, context.seqs, states and states[0])
        write_states(cache, self.cache_spec, after)
        return self.out(c * y)


class LeaksStates(ShortConv):
    """Reads what is in the cache, also of sequences that begin: in a row that has been another's, its state."""

    def forward(self, hidden: Tensor, context: ForwardContext, cache: Any = None) -> Tensor:
        b, c, x = self.project(hidden)
        y, after = self.conv(b * x, context.seqs, None if cache is None else cache[0])
        write_states(cache, self.cache_spec, after)
        return self.out(c * y)


class NormsAfterRotating(Attention):
    """Queries and keys are normed after RoPE, not before."""

    def forward(self, x: Tensor, context: ForwardContext, cache: Any = None) -> Tensor:
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        rotation = context.rotations[self.spec.rotation or 0]
        q, k = self.q_norm(rotation(q)), self.k_norm(rotation(k))
        return self.o(context.attention(q, k, v, context, self.spec, cache).flatten(-2))


class RoundsSums(nn.Module):
    """An RMS norm that adds up squares one by one in the type of its inputs."""

    recompute = True
    weight_decay = False

    def __init__(self, config: ReaLModelConfig, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.shards = {"weight": None}
        self.eps = config.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x[..., 0])
        for column in x.square().unbind(-1):
            total = total + column
        return (x - x * (1 - (total / x.shape[-1] + self.eps).rsqrt()[..., None])) * self.weight


class ForgetsRouting(Block):
    """Its experts are not told where to note what their routers did."""

    def forward(self, x: Tensor, context: ForwardContext, cache: Any = None) -> Tensor:
        return super().forward(x, dataclasses.replace(context, router_stats=None), cache)


class Raises(GatedMLP):
    """Breaks where it is used."""

    def forward(self, x: Tensor, context: object) -> Tensor:
        return F.linear(x, self.gate.weight.T)


class XIELUThatTrainsBeta(XIELU):
    """What is a buffer of the checkpoint gets a gradient."""

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__(config, block)
        self.beta.requires_grad_(True)


class XIELUThatKeepsAlpha(XIELU):
    """What is to be trained is declared a buffer of the checkpoint."""

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__(config, block)
        self.alpha_n.requires_grad_(False)


class XIELUThatStartsAtOne(XIELU):
    """Its parameters begin as norms do."""

    def fresh_parameter(self, name: str, generator: torch.Generator) -> None:
        return None


class XIELUWithoutSlope(XIELU):
    """The linear term is forgotten."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - self.beta * x


class XIELUWithoutShards(XIELU):
    """It does not say how its parameters may be split."""

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__(config, block)
        self.shards = {}


class XIELUThatForgetsPart(XIELU):
    """It does not say that it sees some of the features only."""

    partial_grad = False


class XIELUInFloat32(XIELU):
    """It computes in float32, and gives that to whatever comes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())
