"""The activation of gpt-oss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reallm.model.config import ReaLModelConfig


class ClampedSwiGLU(nn.Module):
    """`(up + 1) * gate * sigmoid(alpha * gate)` of clamped inputs: the gate from above, `up` from both sides."""

    recompute = True

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        self.alpha, self.limit = config.extra.swiglu_alpha, config.extra.swiglu_limit

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """[N, F] of two [N, F]."""
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return (up + 1) * (gate * torch.sigmoid(self.alpha * gate))
