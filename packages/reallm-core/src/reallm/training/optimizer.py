"""The optimizer of a model's parameters, with float32 master weights for parameters in half precision."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reallm.config.optimizer import OptimizerConfig, check_trainable
from reallm.errors import ConfigError
from reallm.model.sharding import Shape
from reallm.model.transformer import Transformer
from reallm.parallel.fsdp import to_local
from reallm.training.update_rules import decayed_parameters, matrices, stepped_tensors, update_rules


class Optimizer:
    """Steps the parameters of a network that require gradients, by torch's optimizers, with gradient clipping.

    Parameters in bfloat16 are stepped in float32: near 1.0 bfloat16 moves in steps of 2^-7, so that an update of
    1e-5 would be lost. Their gradients are summed over micro-batches in float32 too.

    For parameters that FSDP shards, this rank's shard is updated, as a plain tensor.

    Raises:
        ConfigError: for float16 parameters, whose gradients underflow.
    """

    def __init__(self, network: Transformer, config: OptimizerConfig) -> None:
        self._config = config
        self._parameters = {name: each for name, each in network.named_parameters() if each.requires_grad}
        self._frozen = [each for each in network.parameters() if not each.requires_grad]
        self._masters = {name: _master(parameter) for name, parameter in self._parameters.items()}
        """The tensors that are stepped: the parameters themselves if they are plain tensors of float32 or wider."""
        self._rules = update_rules(network, config)
        self._stepped = {name: stepped_tensors(self._rules[name], master) for name, master in self._masters.items()}
        """What torch's optimizers step for each parameter: its master, or each matrix of a stack of matrices."""
        self._stacked_state: dict[str, Tensor] = {}
        """The state of stacks of matrices, by `<parameter>/<kind>`; torch's optimizers hold views of it."""
        decayed = decayed_parameters(network)
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        """By the name of their rule."""
        for rule in {rule.name: rule for rule in self._rules.values()}.values():
            names = [name for name in self._masters if self._rules[name] is rule]
            with_decay, without = ([name for name in names if (name in decayed) is wanted] for wanted in (True, False))
            groups = [
                {"params": [each for name in of_group for each in self._stepped[name]], "weight_decay": weight_decay}
                for of_group, weight_decay in ((with_decay, config.weight_decay), (without, 0.0))
            ]
            self._optimizers[rule.name] = rule.make(groups, config)

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
        for stepped in self._stepped.values():
            for each in stepped:
                each.grad = None
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
        self._split_stacks()
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        # torch's fused steps do not; and where nothing is trained, other stages of the pipeline have changed
        torch.autograd.graph.increment_version(self._masters.values() or self._frozen[:1])
        self.zero_grad()
        for name, parameter in self._parameters.items():
            if self._masters[name].dtype != parameter.dtype:
                to_local(parameter.detach()).copy_(self._masters[name])

    @property
    def has_masters(self) -> bool:
        """Whether the parameters are rounded copies of float32 masters."""
        return any(self._masters[name].dtype != parameter.dtype for name, parameter in self._parameters.items())

    def weights(self) -> dict[str, Tensor]:
        """The tensors that are stepped, by parameter name: the parameters, or their float32 masters. Not copies."""
        return {name: master.detach() for name, master in self._masters.items()}

    def moments(self) -> dict[str, Tensor]:
        """The state of torch's optimizers, `<parameter>/exp_avg` and so on; empty before the first step. Not copies."""
        return {
            f"{name}/{kind}": value
            for name, master in self._masters.items()
            if not self._is_stack(name)
            for kind, value in self._state(name, master).items()
        } | self._stacked_state

    def state_tensors(self) -> list[Tensor]:
        """Masters and moments: all tensors kept in addition to the parameters, except scalars. Not copies."""
        masters = [
            master.detach() for name, master in self._masters.items() if master.dtype != self._parameters[name].dtype
        ]
        return masters + [value for value in self.moments().values() if value.dim()]

    def state_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """The shapes of `moments` of the trained parameters, for parameters of these shapes, such as whole ones."""
        return {
            f"{name}/{kind}": shape
            for name in self._masters
            for kind, shape in self._rules[name].state_shapes(shapes[name], self._config).items()
        }

    @torch.no_grad()
    def load(self, moments: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Restore the results of `moments` and `weights`; `weights` may be empty if the parameters are in place.

        Raises:
            KeyError: a parameter of that name is not trained.
            ConfigError: another optimizer has kept these moments.
        """
        for key in moments:
            name, _, kind = key.rpartition("/")
            kept = self._rules[name].state_shapes(tuple(self._masters[name].shape), self._config)
            if kind not in kept:
                raise ConfigError(
                    f"the saved state has '{key}', which optimizer.name={self._config.name} does not keep "
                    f"({', '.join(kept) or 'it keeps nothing'}); resume with the optimizer and the options that the "
                    "state was saved with, or start a new run from the weights"
                )
        for name, value in weights.items():
            self._masters[name].copy_(value)
            to_local(self._parameters[name].detach()).copy_(value)
        for key, value in moments.items():
            name, _, kind = key.rpartition("/")
            # copied: tensors of a mapped file have another alignment, which can change the last bit of a sum
            copied = torch.empty_like(value, device=self._masters[name].device).copy_(value)
            if self._is_stack(name):
                self._set_stacked_state(key, copied)
            else:
                self._state(name, self._masters[name])[kind] = copied

    def _state(self, name: str, stepped: nn.Parameter) -> dict[str, Tensor]:
        """The state that torch's optimizer keeps for what it steps."""
        return self._optimizers[self._rules[name].name].state[stepped]

    def _is_stack(self, name: str) -> bool:
        return self._stepped[name][0] is not self._masters[name]

    def _split_stacks(self) -> None:
        """Hand the gradients of stacks of matrices, and before the first step zeros as their state, to each matrix."""
        for name, master in self._masters.items():
            if not self._is_stack(name) or master.grad is None:
                continue
            for each, gradient in zip(self._stepped[name], matrices(master.grad), strict=True):
                each.grad = gradient
            for kind, shape in self._rules[name].state_shapes(tuple(master.shape), self._config).items():
                if f"{name}/{kind}" not in self._stacked_state:
                    self._set_stacked_state(f"{name}/{kind}", master.new_zeros(shape))

    def _set_stacked_state(self, key: str, stacked: Tensor) -> None:
        self._stacked_state[key] = stacked
        name, _, kind = key.rpartition("/")
        for each, value in zip(self._stepped[name], matrices(stacked), strict=True):
            self._state(name, each)[kind] = value


def _master(parameter: nn.Parameter) -> nn.Parameter:
    """The tensor that is stepped for a parameter: a float32 copy of a bfloat16 one, otherwise the parameter itself.

    For a parameter that FSDP shards, it is the local shard, in the same memory.
    """
    local = to_local(parameter.detach())
    check_trainable(str(parameter.dtype).removeprefix("torch."))
    if parameter.dtype == torch.bfloat16:
        return nn.Parameter(local.float())
    return nn.Parameter(local) if hasattr(parameter, "to_local") else parameter
