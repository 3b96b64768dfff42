"""Rotary position embedding (Su et al., 2021), and the ways to stretch it to longer contexts.

Shapes: T packed tokens, H heads, D head dim. Frequencies are computed in float32 as transformers does, so that both
give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reallm.model.config import ReaLModelConfig, RopeConfig
from reallm.model.ops import rotate
from reallm.model.sequences import Sequences


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines [T, 1, D] that rotate the vectors of T tokens."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate `x` [T, H, D]; dims `d` and `d + D/2` form a pair."""
        return rotate(x, self.cos, self.sin)


def rotation(config: ReaLModelConfig, seqs: Sequences, dtype: torch.dtype) -> Rotation:
    """The rotation of the tokens of `seqs`, in `dtype`."""
    rope, device = config.rope, seqs.cu_seqlens.device
    if outgrows_cache(config, seqs.totals):
        assert not any(seqs.past), "keys rotated for a shorter sequence cannot be reused"
        per_sequence = [inverse_frequencies(config, length=total, device=device) for total in seqs.totals]
        repeats = torch.tensor(seqs.lengths, device=device)
        inverse = torch.repeat_interleave(torch.stack(per_sequence), repeats, dim=0)
    else:
        inverse = inverse_frequencies(config, device=device)
    return _rotation(seqs.positions, inverse, attention_factor(rope), dtype)


def outgrows_cache(config: ReaLModelConfig, totals: Sequence[int]) -> bool:
    """Whether sequences of these lengths need frequencies of their own, so that each new token changes all keys."""
    return config.rope.kind == "dynamic" and max(totals, default=0) > config.max_positions


def _rotation(positions: Tensor, inverse: Tensor, scale: float, dtype: torch.dtype) -> Rotation:
    """`positions` [T]; `inverse` [D/2], or [T, D/2] where each token has its own."""
    angles = positions[:, None].float() * inverse
    angles = torch.cat((angles, angles), dim=-1)[:, None, :]
    return Rotation((angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype))


def attention_factor(rope: RopeConfig) -> float:
    """Factor on cosines and sines: 1, except for YaRN (Peng et al., 2023, section 3.4)."""
    if rope.kind != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    assert rope.factor is not None
    if rope.mscale and rope.mscale_all_dim:
        return _yarn_mscale(rope.factor, rope.mscale) / _yarn_mscale(rope.factor, rope.mscale_all_dim)
    return _yarn_mscale(rope.factor, 1.0)


def inverse_frequencies(
    config: ReaLModelConfig, *, length: int | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Inverse frequencies [D/2] float32; `length` is that of the sequence, for the kind that depends on it."""
    rope, dim = config.rope, config.head_dim
    exponents = torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim
    if rope.kind == "default":
        return 1.0 / rope.theta**exponents
    assert rope.factor is not None
    if rope.kind == "linear":
        return 1.0 / rope.theta**exponents / rope.factor
    if rope.kind == "dynamic":
        stretch = rope.factor * max(length or 0, config.max_positions) / config.max_positions - (rope.factor - 1)
        return 1.0 / (rope.theta * stretch ** (dim / (dim - 2))) ** exponents
    original = rope.original_max_positions or config.max_positions
    if rope.kind == "llama3":
        return _llama3(1.0 / rope.theta**exponents, rope, original)
    return _yarn(rope.theta**exponents, rope, dim, original)


def _llama3(inverse: Tensor, rope: RopeConfig, original: int) -> Tensor:
    """Long waves are slowed by `factor`, short ones kept, those between blended (Llama 3.1 reference code)."""
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
        high += 0.001  # a ramp of no width would divide by zero
    ramp = ((torch.arange(dim // 2, device=frequencies.device).float() - low) / (high - low)).clamp(0, 1)
    return ramp / (rope.factor * frequencies) + (1 - ramp) / frequencies


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
