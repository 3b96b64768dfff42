"""Rotary position embedding (Su et al., 2021), and its variants for longer contexts.

Shapes: T packed tokens, H heads, D head dim, R rotated dims of each head. Frequencies are computed in float32 as
transformers does, so that results are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from reallm.model.config import ReaLModelConfig, RopeConfig
from reallm.model.ops import FEW_TOKENS, rotate
from reallm.model.packed import PackedSequences


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines [T, 1, R] that rotate the first R dims of the vectors of T tokens."""

    cos: Tensor
    sin: Tensor
    interleaved: bool = False
    """Dims `2d` and `2d + 1` form a pair, rather than `d` and `d + R/2`."""

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate `x` [T, H, D]."""
        n_rotated = self.cos.shape[-1]
        if n_rotated == x.shape[-1]:
            return rotate(x, self.cos, self.sin, interleaved=self.interleaved)
        first, rest = x.split([n_rotated, x.shape[-1] - n_rotated], dim=-1)
        return torch.cat((rotate(first, self.cos, self.sin, interleaved=self.interleaved), rest), dim=-1)

    def both(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate queries [T, H, D] and keys [T, K, D]; those of few tokens, as in decoding, in as few calls as one."""
        if len(q) > FEW_TOKENS or torch.is_grad_enabled() or self.interleaved or self.cos.shape[-1] != q.shape[-1]:
            return self(q), self(k)
        x = torch.cat((q, k), dim=1)
        rotated = x * self.cos + x.roll(x.shape[-1] // 2, dims=-1) * self._signed_sin
        return rotated[:, : q.shape[1]], rotated[:, q.shape[1] :]

    def joint(self, n_heads: Sequence[int], head_dim: int, n_rows: int) -> JointRotation | None:
        """This rotation of queries and keys as one; None if it does not rotate whole heads, the halves of each.

        Args:
            n_heads: numbers of the heads of queries, keys and values.
            head_dim: D.
            n_rows: number of rows; those behind the T tokens are not rotated.
        """
        if self.interleaved or self.cos.shape[-1] != head_dim:
            return None
        cos, sin = self.cos.new_ones(n_rows, sum(n_heads), head_dim), self.sin.new_zeros(n_rows, sum(n_heads), head_dim)
        rotated = slice(len(self.cos)), slice(n_heads[0] + n_heads[1])
        cos[rotated], sin[rotated] = self.cos, self._signed_sin
        return JointRotation(cos, sin, n_heads, len(self.cos))

    @cached_property
    def _signed_sin(self) -> Tensor:
        """Sines whose first half, which multiplies the second half of a vector, is negative."""
        first, second = self.sin.chunk(2, dim=-1)
        return torch.cat((-first, second), dim=-1)


class JointRotation:
    """The rotation of the queries and keys of few tokens, which lie beside the values in one tensor.

    Args:
        cos: [R, N, D] cosines, N being the number of all heads; 1 for values.
        sin: [R, N, D] sines, negative for the first half of each head; 0 for values.
        n_heads: numbers of the heads of queries, keys and values.
        n_tokens: number of the first rows that are returned.
    """

    def __init__(self, cos: Tensor, sin: Tensor, n_heads: Sequence[int], n_tokens: int) -> None:
        self._cos, self._sin, half = cos, sin, cos.shape[-1] // 2
        self._rotated, self._product = torch.empty_like(cos), torch.empty_like(sin)
        self._parts = self._rotated[:n_tokens].split_with_sizes(list(n_heads), dim=1)
        # each head twice in a row: from its middle on, its halves are exchanged, without a call in each block
        self._twice = cos.new_empty(*cos.shape[:-1], 2, cos.shape[-1])
        self._turned = self._twice.flatten(2)[..., half : half + cos.shape[-1]]

    def __call__(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """Queries [T, H, D], keys and values [T, K, D] of `qkv` [R, N * D]; they are overwritten by the next call."""
        heads = qkv.view(self._cos.shape)
        self._twice.copy_(heads.unsqueeze(2))
        torch.mul(self._turned, self._sin, out=self._product)
        torch.mul(heads, self._cos, out=self._rotated).add_(self._product)
        return self._parts


def rotations(config: ReaLModelConfig, seqs: PackedSequences, dtype: torch.dtype) -> tuple[Rotation, ...]:
    """Rotation of the tokens of `seqs`, in `dtype`, for each of `config.distinct_ropes`."""
    return tuple(_rotation(config, rope, seqs, dtype) for rope in config.distinct_ropes)


def _rotation(config: ReaLModelConfig, rope: RopeConfig, seqs: PackedSequences, dtype: torch.dtype) -> Rotation:
    device = seqs.cu_seqlens.device
    lengths = [_frequency_length(config, rope, total) for total in seqs.totals] if rope.depends_on_length else []
    if any(lengths):
        per_sequence = [inverse_frequencies(config, rope, length=length, device=device) for length in lengths]
        repeats = torch.tensor(seqs.lengths, device=device)
        inverse = torch.repeat_interleave(torch.stack(per_sequence), repeats, dim=0)
    else:
        inverse = inverse_frequencies(config, rope, device=device)
    # `inverse` is [R/2], or [T, R/2] if tokens have different ones
    angles = seqs.positions[:, None].float() * inverse
    angles = angles.repeat_interleave(2, dim=-1) if rope.interleaved else torch.cat((angles, angles), dim=-1)
    scale, angles = attention_factor(config, rope), angles[:, None, :]
    return Rotation((angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype), rope.interleaved)


def keys_are_stale(config: ReaLModelConfig, cached_lengths: Sequence[int], totals: Sequence[int]) -> bool:
    """Whether cached keys were rotated by frequencies other than those that sequences of lengths `totals` need.

    Args:
        config: configuration of the network.
        cached_lengths: tokens of each sequence in the cache.
        totals: tokens of each sequence, including the new ones.
    """
    return any(
        cached > 0 and _frequency_length(config, rope, cached) != _frequency_length(config, rope, total)
        for rope in config.distinct_ropes
        if rope.depends_on_length
        for cached, total in zip(cached_lengths, totals, strict=True)
    )


def longest_with_fixed_frequencies(config: ReaLModelConfig) -> int | None:
    """Number of tokens up to which the frequencies of a sequence do not depend on its length; None: they never do."""
    return min((_fixed_up_to(config, rope) for rope in config.distinct_ropes if rope.depends_on_length), default=None)


def _fixed_up_to(config: ReaLModelConfig, rope: RopeConfig) -> int:
    """Number of tokens up to which frequencies that depend on the length equal those of pretraining."""
    if rope.kind == "dynamic":
        return config.max_positions
    assert rope.original_max_positions is not None
    return rope.original_max_positions


def _frequency_length(config: ReaLModelConfig, rope: RopeConfig, length: int) -> int:
    """The length for which a sequence's frequencies are computed: 0 while they equal those of pretraining."""
    if not rope.depends_on_length or length <= _fixed_up_to(config, rope):
        return 0
    return length if rope.kind == "dynamic" else _fixed_up_to(config, rope) + 1


def attention_factor(config: ReaLModelConfig, rope: RopeConfig) -> float:
    """Factor on cosines and sines: 1, except for YaRN (Peng et al., 2023, section 3.4) and LongRoPE."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.kind == "longrope":
        assert rope.original_max_positions is not None
        factor = rope.factor or config.max_positions / rope.original_max_positions
        return math.sqrt(1 + math.log(factor) / math.log(rope.original_max_positions)) if factor > 1 else 1.0
    if rope.kind != "yarn":
        return 1.0
    assert rope.factor is not None
    if rope.mscale and rope.mscale_all_dim:
        return _yarn_mscale(rope.factor, rope.mscale) / _yarn_mscale(rope.factor, rope.mscale_all_dim)
    return _yarn_mscale(rope.factor, 1.0)


def inverse_frequencies(
    config: ReaLModelConfig, rope: RopeConfig, *, length: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """Inverse frequencies [R/2] float32; `length` is the sequence's length, for kinds that depend on it."""
    dim = rope.rotary_dim or config.head_dim
    exponents = torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim
    if rope.kind == "default":
        return 1.0 / rope.theta**exponents
    if rope.kind == "longrope":
        factors = rope.long_factor if length else rope.short_factor
        assert factors is not None
        return 1.0 / (torch.tensor(factors, dtype=torch.float32, device=device) * rope.theta**exponents)
    assert rope.factor is not None
    if rope.kind == "linear":
        return 1.0 / rope.theta**exponents / rope.factor
    if rope.kind == "dynamic":
        stretch = rope.factor * max(length, config.max_positions) / config.max_positions - (rope.factor - 1)
        return 1.0 / (rope.theta * stretch ** (dim / (dim - 2))) ** exponents
    original = rope.original_max_positions or config.max_positions
    if rope.kind == "llama3":
        return _llama3(1.0 / rope.theta**exponents, rope, original)
    return _yarn(rope.theta**exponents, rope, dim, original)


def _llama3(inverse: Tensor, rope: RopeConfig, original: int) -> Tensor:
    """Slow long waves by `factor`, keep short ones, and blend between them (Llama 3.1 reference code)."""
    factor, low, high = rope.factor, rope.low_freq_factor, rope.high_freq_factor
    assert factor is not None
    assert low is not None
    assert high is not None
    turns = original * inverse / (2 * math.pi)
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * inverse / factor + blend * inverse


def _yarn(frequencies: Tensor, rope: RopeConfig, dim: int, original: int) -> Tensor:
    """NTK-by-parts interpolation (Peng et al., 2023, section 3.2)."""
    assert rope.factor is not None

    def dim_of(turns: float) -> float:
        """The dim whose wave makes `turns` turns over the original context."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dim_of(rope.beta_fast or 32.0), dim_of(rope.beta_slow or 1.0)
    if rope.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # a ramp of zero width would divide by zero
    ramp = ((torch.arange(dim // 2, device=frequencies.device).float() - low) / (high - low)).clamp(0, 1)
    return ramp / (rope.factor * frequencies) + (1 - ramp) / frequencies


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
