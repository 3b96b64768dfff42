"""AdamW over a model's parameters, with float32 master weights for parameters in half precision."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reallm.config.optimizer import OptimizerConfig, check_trainable
from reallm.parallel.fsdp import to_local


class Optimizer:
    """AdamW (fused) with gradient clipping, over the parameters of a model that require gradients.

    Parameters in bfloat16 are stepped in float32: near 1.0 bfloat16 moves in steps of 2^-7, so that an update of
    1e-5 would be lost. Their gradients are summed over micro-batches in float32 too.

    For parameters that FSDP shards, this rank's shard is updated, as a plain tensor.

    Raises:
        ConfigError: for float16 parameters, whose gradients underflow.
    """

    def __init__(self, network: nn.Module, config: OptimizerConfig) -> None:
        self._config = config
        self._parameters = {name: each for name, each in network.named_parameters() if each.requires_grad}
        self._masters = {name: _master(parameter) for name, parameter in self._parameters.items()}
        """The tensors that AdamW updates: the parameters themselves if they are plain tensors of float32 or wider."""
        decayed = decayed_parameters(network)
        self._adamw = torch.optim.AdamW(
            [
                {
                    "params": [master for name, master in self._masters.items() if name in decayed],
                    "weight_decay": config.weight_decay,
                },
                {
                    "params": [master for name, master in self._masters.items() if name not in decayed],
                    "weight_decay": 0.0,
                },
            ],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )

    @torch.no_grad()
    def accumulate_gradients(self) -> None:
        """Add the parameters' gradients to the gradients of their masters; to be called after each backward pass."""
        for name, parameter in self._parameters.items():
            master = self._masters[name]
            if master is parameter or parameter.grad is None:
                continue
            gradient = to_local(parameter.grad)
            if master.grad is None:
                master.grad = gradient.to(master.dtype)
            else:
                master.grad.add_(gradient)
            parameter.grad = None

    def gradients(self) -> dict[str, Tensor]:
        """The accumulated gradients by parameter name, not copies."""
        return {name: master.grad for name, master in self._masters.items() if master.grad is not None}

    def zero_grad(self) -> None:
        """Drop the gradients accumulated since the last step."""
        for parameter in (*self._parameters.values(), *self._masters.values()):
            parameter.grad = None

    @torch.no_grad()
    def grad_norm(self) -> Tensor:
        """The L2 norm of the accumulated gradients, 0-dim."""
        return nn.utils.get_total_norm(self.gradients().values())

    @torch.no_grad()
    def step(self, lr: float, grad_norm: Tensor) -> None:
        """Clip the gradients, whose norm is `grad_norm`, step with learning rate `lr`, and drop them."""
        if self._config.max_grad_norm > 0:
            nn.utils.clip_grads_with_norm_(self._masters.values(), self._config.max_grad_norm, grad_norm)
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        self.zero_grad()
        for name, parameter in self._parameters.items():
            if self._masters[name].dtype != parameter.dtype:
                to_local(parameter.detach()).copy_(self._masters[name])

    @property
    def has_masters(self) -> bool:
        """Whether the parameters are rounded copies of float32 masters."""
        return any(self._masters[name].dtype != parameter.dtype for name, parameter in self._parameters.items())

    def weights(self) -> dict[str, Tensor]:
        """The tensors that AdamW updates, by parameter name: the parameters, or their float32 masters. Not copies."""
        return {name: master.detach() for name, master in self._masters.items()}

    def moments(self) -> dict[str, Tensor]:
        """AdamW's state, as `<parameter>/exp_avg` and so on; empty before the first step. Not copies."""
        return {
            f"{name}/{key}": value
            for name, master in self._masters.items()
            for key, value in self._adamw.state.get(master, {}).items()
        }

    def state_tensors(self) -> list[Tensor]:
        """Masters and moments: all tensors kept in addition to the parameters, except scalars. Not copies."""
        masters = [
            master.detach() for name, master in self._masters.items() if master.dtype != self._parameters[name].dtype
        ]
        return masters + [value for value in self.moments().values() if value.dim()]

    @torch.no_grad()
    def load(self, moments: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Restore the results of `moments` and `weights`; `weights` may be empty if the parameters are in place.

        Raises:
            KeyError: a parameter of that name is not trained.
        """
        for name, value in weights.items():
            self._masters[name].copy_(value)
            to_local(self._parameters[name].detach()).copy_(value)
        for key, value in moments.items():
            name, _, kind = key.rpartition("/")
            master = self._masters[name]
            # copied: tensors of a mapped file have another alignment, which can change the last bit of a sum
            self._adamw.state[master][kind] = torch.empty_like(value, device=master.device).copy_(value)


def decayed_parameters(network: nn.Module) -> set[str]:
    """The names of the parameters that weight decay applies to: matrices, except in norms and biases.

    Most norms and biases are vectors. A layer whose parameters are exempt whatever their shape sets
    `weight_decay = False`.
    """
    return {
        f"{path}.{name}" if path else name
        for path, module in network.named_modules()
        if getattr(module, "weight_decay", True)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() >= 2 and name != "bias"
    }


def _master(parameter: nn.Parameter) -> nn.Parameter:
    """The tensor that AdamW updates for a parameter: a float32 copy of a bfloat16 one, otherwise the parameter itself.

    For a parameter that FSDP shards, it is the local shard, in the same memory.
    """
    local = to_local(parameter.detach())
    check_trainable(str(parameter.dtype).removeprefix("torch."))
    if parameter.dtype == torch.bfloat16:
        return nn.Parameter(local.float())
    return nn.Parameter(local) if hasattr(parameter, "to_local") else parameter
