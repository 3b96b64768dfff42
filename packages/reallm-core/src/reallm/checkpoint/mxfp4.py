"""Matrices stored in MXFP4: blocks of 32 numbers of 4 bits with a scale of 8 bits (OCP Microscaling Formats, 1.0).

A matrix `name` [..., in, out] is stored as `name_blocks` [..., out, in / 32, 16], two numbers in a byte, and
`name_scales` [..., out, in / 32]: the layout that gpt-oss introduced, and that transformers reads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BLOCKS, SCALES = "_blocks", "_scales"
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Number (E2M1) of each code."""
SCALE_BIAS = 127
BYTES_PER_BLOCK = 16
ROWS_AT_ONCE = 1 << 16
"""Number of blocks that are dequantized together: indices take eight times the bytes."""

Shape = tuple[int, ...]


def packed_tensors(shapes: Mapping[str, Shape]) -> dict[str, tuple[tuple[str, str], Shape]]:
    """Names of the matrices that are stored in MXFP4 -> names of their blocks and scales, and their shape.

    Args:
        shapes: shapes of the tensors of bytes.
    """
    found: dict[str, tuple[tuple[str, str], Shape]] = {}
    for blocks, shape in shapes.items():
        name = blocks.removesuffix(BLOCKS)
        scales = f"{name}{SCALES}"
        if name == blocks or len(shape) < 3 or shape[-1] != BYTES_PER_BLOCK or shapes.get(scales) != shape[:-1]:
            continue
        *batch, n_out, n_blocks, _ = shape
        found[name] = (blocks, scales), (*batch, n_blocks * 2 * BYTES_PER_BLOCK, n_out)
    return found


def dequantized(blocks: Tensor, scales: Tensor) -> Tensor:
    """The matrices [..., in, out], bfloat16, of blocks [..., out, G, 16] and scales [..., out, G], both uint8.

    Each number is a bfloat16 exactly, so that nothing is rounded.
    """
    codes = torch.arange(256)
    values = torch.tensor(FP4_VALUES, dtype=torch.bfloat16)
    pairs = values[torch.stack((codes & 15, codes >> 4), dim=-1)]  # of each byte: the lower bits are the first number
    out = torch.empty(*blocks.shape, 2, dtype=torch.bfloat16)
    rows = (each.split(ROWS_AT_ONCE) for each in (out.flatten(0, -3), blocks.flatten(0, -2), scales.flatten()))
    for numbers, bytes_of, scale_of in zip(*rows, strict=True):
        exponents = scale_of.to(torch.int32) - SCALE_BIAS
        torch.ldexp(pairs[bytes_of.long()], exponents[:, None, None], out=numbers)
    return out.flatten(-3).transpose(-1, -2)
