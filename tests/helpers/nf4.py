"""A quantizer in plain torch with the interface of bitsandbytes' one: NF4 and 8-bit scales, as in QLoRA's paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reallm.model.products import nf4

VALUES = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip
"""The table in appendix E of the paper."""
HALF_GAP = 0.5 * float(VALUES.diff().max())
"""The largest error of a weight, relative to the largest weight of its block, without the error of the scale."""


@dataclass(frozen=True)
class ReferenceWeight:
    """A weight [N, K] whose number of elements is a multiple of 64."""

    codes: Tensor
    """Two weights a byte [N * K / 2] uint8."""
    scales: Tensor
    """One for 64 weights [N * K / 64] int8, after their mean has been taken away."""
    scales_of_scales: Tensor
    """One for 256 scales, float32."""
    mean: Tensor
    shape: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(cls, weight: Tensor) -> ReferenceWeight:
        """Quantize a weight."""
        blocks = weight.detach().float().reshape(-1, nf4.BLOCK)
        absmax = blocks.abs().amax(dim=1)
        nearest = (blocks / absmax[:, None] - VALUES[:, None, None]).abs().argmin(dim=0).reshape(-1, 2)
        codes = (nearest[:, 0] * 16 + nearest[:, 1]).to(torch.uint8)
        mean = absmax.mean()
        rest = F.pad(absmax - mean, (0, -len(absmax) % nf4.BLOCK_OF_SCALES)).reshape(-1, nf4.BLOCK_OF_SCALES)
        outer = rest.abs().amax(dim=1).clamp_min(1e-30)
        scales = (rest / outer[:, None] * 127).round().to(torch.int8).flatten()[: len(absmax)]
        return cls(codes, scales, outer, mean, weight.shape, weight.dtype)

    def dequantize(self) -> Tensor:
        outer = self.scales_of_scales.repeat_interleave(nf4.BLOCK_OF_SCALES)[: len(self.scales)]
        absmax = self.scales.float() / 127 * outer + self.mean
        codes = torch.stack((self.codes // 16, self.codes % 16), dim=1).long()
        blocks = VALUES[codes].reshape(-1, nf4.BLOCK) * absmax[:, None]
        return blocks.reshape(self.shape).to(self.dtype)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.dequantize(), bias)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes + self.scales_of_scales.nbytes


@pytest.fixture
def reference_quantizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are quantized by `ReferenceWeight`, on any device."""

    def quantizer(device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], ReferenceWeight]:
        return ReferenceWeight.of

    monkeypatch.setattr(nf4, "nf4_quantizer", quantizer)
