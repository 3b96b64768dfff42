"""Multi-head latent attention (DeepSeek-V2, 2024, section 2.1).

Shapes: T packed tokens, H heads, R latent rank, N and P unrotated and rotated dims of a query, W dims of a value.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reallm.errors import ConfigError
from reallm.model.attention.functional import AttentionSpec, append, attend_kept, attend_new
from reallm.model.attention.kv_cache import CacheTensor, LayerCache
from reallm.model.config import ReaLModelConfig
from reallm.model.forward_context import ForwardContext
from reallm.model.layers import Linear, RMSNorm, SharedByHeads
from reallm.model.sharding import TPUnits

NORM_EPS = 1e-6
"""Epsilon of the norms of latents, whatever `rms_norm_eps` is."""


class LatentAttention(nn.Module):
    """Causal attention whose keys and values are linear in a latent of each token, beside a rotated key for all heads.

    Latent and rotated key are all that is kept for decoding, R + P numbers a token. Sequences that begin are computed
    with the keys and values of each head. In those that go on, `q . (K c)` is computed as `(K^T q) . c` for the cached
    latents `c`, and `sum_i p_i V c_i` as `V sum_i p_i c_i`: the heads are queries of one head with R + P dims.
    """

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        size, n_heads, q_rank, bias = config.hidden_size, config.n_q_heads, config.extra.q_rank, config.o_bias
        rope = config.ropes[block]
        assert rope is not None, "the key that all heads share is rotated"
        if config.n_kv_heads != n_heads:
            raise ConfigError(f"n_kv_heads={config.n_kv_heads} must be n_q_heads={n_heads}, since heads share a latent")
        self.rank, self.rotated = config.extra.kv_rank, rope.rotary_dim or config.head_dim
        self.unrotated, self.value_dim = config.head_dim - self.rotated, config.value_dim
        q_width, kv_width = config.head_dim, self.unrotated + self.value_dim
        if q_rank is None:
            self.q = Linear(size, n_heads * q_width, split="column", unit=q_width)
        else:
            self.q_down = Linear(size, q_rank, bias=bias, split=None)
            self.q_norm = RMSNorm(q_rank, NORM_EPS)
            self.q_up = Linear(q_rank, n_heads * q_width, split="column", unit=q_width)
        self.has_q_rank = q_rank is not None
        self.kv_down = Linear(size, self.rank + self.rotated, bias=bias, split=None)
        self.kv_norm = RMSNorm(self.rank, NORM_EPS)
        self.shared_key = SharedByHeads()
        self.kv_up = Linear(self.rank, n_heads * kv_width, split="column", unit=kv_width)
        self.o = Linear(n_heads * self.value_dim, size, bias=bias, split="row", unit=self.value_dim)
        self.cache_spec = (CacheTensor((1, self.rank + self.rotated)),)
        self.tp_units = (TPUnits(n_heads, "heads"),)
        self.spec = AttentionSpec.of_block(config, block)
        self.inference_spec = self.spec.without_dropout()

    def forward(self, x: Tensor, context: ForwardContext, cache: LayerCache | None = None) -> Tensor:
        """Attention of `x` [T, E]; see `attend` of the core."""
        spec = self.spec if self.training else self.inference_spec
        q, latent, key = self._projected(x, context)
        n = append(cache, torch.cat((latent, key), dim=-1).unsqueeze(1), context.seqs)
        outputs = []
        if n:
            k, v = self._keys_and_values(latent[:n], key[:n])
            outputs.append(attend_new(q[:n], k, v, context, spec, cache))
        if n < len(x):
            assert cache is not None
            to_keys, to_values = self._absorbed()
            kept = attend_kept(self._queries_of_latents(q[n:], to_keys), context, spec, cache)
            outputs.append(torch.einsum("thr,hwr->thw", kept[..., : self.rank], to_values))
        return self.o(torch.cat(outputs).flatten(-2))

    def _projected(self, x: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [T, H, N + P], latents [T, R], and the rotated key [T, P] that all heads share."""
        q = self.q_up(self.q_norm(self.q_down(x))) if self.has_q_rank else self.q(x)
        q = q.unflatten(-1, (-1, self.unrotated + self.rotated))
        q_pass, q_rotated = q.split([self.unrotated, self.rotated], dim=-1)
        latent, key = self.kv_down(x).split([self.rank, self.rotated], dim=-1)
        assert self.spec.rotation is not None
        q_rotated, key = context.rotations[self.spec.rotation].both(q_rotated, self.shared_key(key).unsqueeze(1))
        return torch.cat((q_pass, q_rotated), dim=-1), self.kv_norm(latent), key.squeeze(1)

    def _keys_and_values(self, latent: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [T, H, N + P] and values [T, H, W] of each head."""
        heads = self.kv_up(latent).unflatten(-1, (-1, self.unrotated + self.value_dim))
        k, v = heads.split([self.unrotated, self.value_dim], dim=-1)
        return torch.cat((k, key.unsqueeze(1).expand(-1, k.shape[1], -1)), dim=-1), v

    def _absorbed(self) -> tuple[Tensor, Tensor]:
        """The matrices [H, N, R] and [H, W, R] that make keys and values of latents."""
        weight = self.kv_up.weight
        if type(self.kv_up) is not Linear:  # it has an adapter
            weight = self.kv_up(torch.eye(self.rank, dtype=weight.dtype, device=weight.device)).t()
        heads = weight.unflatten(0, (-1, self.unrotated + self.value_dim))
        to_keys, to_values = heads.split([self.unrotated, self.value_dim], dim=1)
        return to_keys, to_values

    def _queries_of_latents(self, q: Tensor, to_keys: Tensor) -> Tensor:
        """Queries [T, H, R + P] of latents and shared keys, of queries [T, H, N + P] of keys."""
        q_pass, q_rotated = q.split([self.unrotated, self.rotated], dim=-1)
        return torch.cat((torch.einsum("thn,hnr->thr", q_pass, to_keys), q_rotated), dim=-1)
