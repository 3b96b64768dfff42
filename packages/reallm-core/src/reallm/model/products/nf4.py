"""Weights in 4-bit NormalFloat with double quantization (QLoRA; Dettmers et al., 2023, arXiv 2305.14314).

This file alone calls bitsandbytes, which is imported when it is needed.

Shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol

import torch
from torch import Tensor

from reallm.errors import ConfigError

DTYPES = torch.float32, torch.bfloat16, torch.float16
"""Dtypes from which weights can be quantized."""
BLOCK = 64
"""Weights that have a scale in common."""
BLOCK_OF_SCALES = 256
"""Scales, of 8 bits each, that have a float32 scale in common."""


class QuantizedWeight(Protocol):
    """A weight [N, K] in few bits, which does not change."""

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`x @ weight.T + bias`, [M, K] -> [M, N], differentiable in `x`."""

    def dequantize(self) -> Tensor:
        """The weight in the dtype that it was quantized from."""


@dataclass(frozen=True)
class NF4Weight:
    """A weight that bitsandbytes holds.

    Its products read the 4 bits directly where it has a kernel for that; the backward pass makes the whole weight.
    """

    packed: Tensor
    """Two weights a byte [N * K / 2, 1] uint8."""
    state: Any
    """Scales, and shape and dtype of the weight: `bitsandbytes.functional.QuantState`."""

    @classmethod
    def of(cls, weight: Tensor) -> NF4Weight:
        """Quantize a weight [N, K] in float32 or half precision, where it is."""
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
        return cls(packed, state)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        from bitsandbytes import matmul_4bit

        out: Tensor = matmul_4bit(x, self.packed, self.state, bias=bias)
        return out

    def dequantize(self) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        weight: Tensor = dequantize_4bit(self.packed, self.state)
        return weight


def nf4_quantizer(device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], QuantizedWeight]:
    """What quantizes weights of a dtype, in which they are multiplied too, on a device.

    Raises:
        ConfigError: the device is not a CUDA GPU, the dtype is another one, or bitsandbytes is not installed; says what
            to do.
    """
    if device.type != "cuda":
        raise ConfigError(f"quantize_base=nf4 needs a CUDA GPU, and the device is {device.type}; leave it out")
    if dtype not in DTYPES:
        raise ConfigError(f"quantize_base=nf4 does not work with {dtype}; load the model as bfloat16 or float32")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ConfigError("quantize_base=nf4 needs bitsandbytes: pip install 'reallm-core[qlora]'") from error
    return NF4Weight.of


def nf4_bytes(n: int) -> int:
    """Bytes of a weight of `n` elements, scales included: about 4.13 bits for each."""
    n_scales = ceil(n / BLOCK)
    return ceil(n / 2) + n_scales + 4 * ceil(n_scales / BLOCK_OF_SCALES)
