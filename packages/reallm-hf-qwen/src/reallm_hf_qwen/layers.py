"""Gated delta net, the linear attention of Qwen3-Next (Yang et al., 2024: Gated Delta Networks).

Shapes: T packed tokens, E hidden, K key heads, H value heads, D key dim, W value dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from reallm.errors import ConfigError
from reallm.model.attention.gated_delta_rule import gated_delta_rule
from reallm.model.attention.kv_cache import CacheTensor, LayerCache
from reallm.model.attention.states import read_states, write_states
from reallm.model.causal_conv import CausalConv
from reallm.model.config import ReaLModelConfig
from reallm.model.forward_context import ForwardContext
from reallm.model.layers import Activation, Linear, Projections, RMSNorm
from reallm.model.sharding import Shard, Shards, TPUnits


class GatedDeltaNet(Projections):
    """`out(norm(rule(q, k, v, decay, beta)) * silu(z))` in place of attention, with short convolutions of q, k and v.

    Each key head serves H / K successive value heads. For decoding it keeps the last inputs of the convolutions and the
    state of each value head, whatever the number of tokens.
    """

    projections = "in_q", "in_k", "in_v", "in_z", "in_b", "in_a"

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        size, extra = config.hidden_size, config.extra
        n_keys, n_values, key_dim, value_dim = extra.n_key_heads, extra.n_value_heads, extra.key_dim, extra.value_dim
        if n_values % n_keys:
            raise ConfigError(f"extra.n_value_heads={n_values} must be a multiple of extra.n_key_heads={n_keys}")
        each = n_values // n_keys
        self.key_dim, self.value_dim = key_dim, value_dim
        self.in_q = Linear(size, n_keys * key_dim, split="column", unit=key_dim)
        self.in_k = Linear(size, n_keys * key_dim, split="column", unit=key_dim)
        self.in_v = Linear(size, n_values * value_dim, split="column", unit=each * value_dim)
        self.in_z = Linear(size, n_values * value_dim, split="column", unit=each * value_dim)
        self.in_b = Linear(size, n_values, split="column", unit=each)
        self.in_a = Linear(size, n_values, split="column", unit=each)
        self.q_conv, self.k_conv = (CausalConv(n_keys * key_dim, extra.conv_size) for _ in range(2))
        self.v_conv = CausalConv(n_values * value_dim, extra.conv_size)
        self.conv_act, self.z_act = Activation(config.activation), Activation("silu")
        self.decay = Decay(n_values, each)
        self.norm = RMSNorm(value_dim, config.norm_eps)
        self.norm.partial_grad = True  # type: ignore[assignment] # modules declare nothing but tensors and modules
        self.out = Linear(n_values * value_dim, size, split="row", unit=each * value_dim)
        convs = self.q_conv, self.k_conv, self.v_conv
        state = CacheTensor((n_values, key_dim, value_dim), per_token=False, shard=Shard(0, each), dtype=torch.float32)
        self.cache_spec = (*(conv.cache_tensor for conv in convs), state)
        self.tp_units = (TPUnits(n_keys, "key heads of linear attention"),)

    def forward(self, x: Tensor, context: ForwardContext, cache: LayerCache | None = None) -> Tensor:
        """What is added to the residual stream [T, E], for its norm `x` [T, E]."""
        q, k, v, z, b, a = self.project(x)
        attend = self._attend_uncompiled if torch.compiler.is_compiling() else self._attend
        attended = attend(q, k, v, self.decay(a), b.sigmoid(), context, cache)
        return self.out(self.z_act(z.unflatten(-1, (-1, self.value_dim)), self.norm(attended)).flatten(-2))

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        context: ForwardContext,
        cache: LayerCache | None,
    ) -> Tensor:
        """Outputs [T, H, W] for queries and keys [T, K * D] and values [T, H * W] before the convolutions."""
        seqs = context.seqs
        states = read_states(cache, self.cache_spec, seqs) or (None,) * len(self.cache_spec)
        q, after_q = self.q_conv(q, seqs, states[0])
        k, after_k = self.k_conv(k, seqs, states[1])
        v, after_v = self.v_conv(v, seqs, states[2])
        q, k = (self.conv_act(x).unflatten(-1, (-1, self.key_dim)) for x in (q, k))
        v = self.conv_act(v).unflatten(-1, (-1, self.value_dim))
        out, state = gated_delta_rule(q, k, v, g, beta, seqs.lengths, states[3])
        write_states(cache, self.cache_spec, after_q, after_k, after_v, state)
        return out

    _attend_uncompiled = _disable_dynamo(_attend)


class Decay(nn.Module):
    """The logarithms `-exp(a_log) * softplus(a + dt_bias)` of the decays of H heads, in at least float32.

    Under tensor parallelism it acts on the heads that it gets, `unit` of which stay together.
    """

    def __init__(self, n_heads: int, unit: int) -> None:
        super().__init__()
        self.a_log = nn.Parameter(torch.empty(n_heads))
        self.dt_bias = nn.Parameter(torch.empty(n_heads))
        self.shards: Shards = {"a_log": Shard(0, unit), "dt_bias": Shard(0, unit)}

    def forward(self, a: Tensor) -> Tensor:
        """The logarithms [T, H] for `a` [T, H]."""
        wide = torch.promote_types(a.dtype, torch.float32)
        return -self.a_log.to(wide).exp() * F.softplus(a.to(wide) + self.dt_bias)

    def fresh_parameter(self, name: str, generator: torch.Generator) -> Tensor | None:
        """The initial value of `a_log`: the logarithm of a uniform number in (0.01, 16), as in transformers."""
        return torch.empty(self.a_log.shape).uniform_(0.01, 16, generator=generator).log_() if name == "a_log" else None
