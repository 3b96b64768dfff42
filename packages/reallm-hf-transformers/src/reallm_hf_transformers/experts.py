"""Experts of transformers' layers, also where transformers' fast function for them does not run.

Layers call the function that is registered here by its name in the configuration (`ExpertsInterface`).

Shapes: T packed tokens, E hidden, X experts, k experts of each token, F intermediate.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

from reallm_hf_transformers.constants import is_fake

NAME = "reallm"
"""Name of the function in transformers' configurations."""


def register() -> None:
    """Make the function known to transformers."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, experts)


def experts(module: Any, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """The outputs [T, E] of the chosen experts for `x` [T, E], with `indices` and `weights` [T, k]."""
    if x.is_meta or is_fake(x):
        return _shapes(module, x, weights)
    if x.dtype == torch.float64:  # which kernels lack
        return inspect.unwrap(type(module).forward)(module, x, indices, weights)
    return grouped_mm_experts_forward(module, x, indices, weights)


def _shapes(module: Any, x: Tensor, weights: Tensor) -> Tensor:
    """`experts` without values: products of the same shapes, as if all tokens had chosen the first expert."""
    rows = x.repeat_interleave(weights.shape[-1], dim=0)
    first, last = module.gate_up_proj if module.has_gate else module.up_proj, module.down_proj
    inner = rows @ (first[0] if module.is_transposed else first[0].t())
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    out = inner @ (last[0] if module.is_transposed else last[0].t())
    return (out * weights.reshape(-1, 1)).view(len(x), -1, out.shape[-1]).sum(dim=1).to(x.dtype)
