"""AdamW over a model's parameters, with float32 master weights for those held in half precision."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from reallm.engine.optimizer_config import OptimizerConfig
from reallm.errors import ConfigError, ReallmError


class Optimizer:
    """AdamW (fused) with gradient clipping.

    Parameters in bfloat16 are stepped in float32: near 1.0 bfloat16 moves in steps of 2^-7, so that an update of
    1e-5 would be lost. Their gradients are summed over micro-batches in float32 too.

    Raises:
        ConfigError: for float16 parameters, whose gradients underflow.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> None:
        self._config = config
        self._pairs = [(parameter, _master(parameter)) for parameter in parameters if parameter.requires_grad]
        # norms and biases are vectors, and every other weight is a matrix
        decayed = [master for parameter, master in self._pairs if parameter.dim() >= 2]
        others = [master for parameter, master in self._pairs if parameter.dim() < 2]
        self._adamw = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Add the gradients of half-precision parameters to those of their masters; call after each backward pass."""
        for parameter, master in self._pairs:
            if master is parameter or parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.to(master.dtype)
            else:
                master.grad.add_(parameter.grad)
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """Clip the gradients, step with learning rate `lr`, and forget them.

        Returns:
            The global L2 norm of the gradients before clipping.

        Raises:
            ReallmError: the gradients are not finite; the parameters are as they were.
        """
        gradients = [master.grad for _, master in self._pairs if master.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        grad_norm = float(norm)
        if not math.isfinite(grad_norm):
            self._adamw.zero_grad(set_to_none=True)
            raise ReallmError(
                f"the gradients are not finite (norm {grad_norm}): lower optimizer.lr, give it a longer warm-up, "
                "or train with model.dtype=float32"
            )
        if self._config.max_grad_norm > 0:
            nn.utils.clip_grads_with_norm_([master for _, master in self._pairs], self._config.max_grad_norm, norm)
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        for parameter, master in self._pairs:
            if master is not parameter:
                parameter.copy_(master)
        return grad_norm


def _master(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter itself, or a float32 copy of a bfloat16 one."""
    if parameter.dtype == torch.float16:
        raise ConfigError("model.dtype=float16 cannot be trained, its gradients underflow; use bfloat16 or float32")
    if parameter.dtype == torch.bfloat16:
        return nn.Parameter(parameter.detach().float())
    return parameter
