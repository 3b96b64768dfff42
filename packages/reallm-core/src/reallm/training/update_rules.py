"""The update rules that `optimizer.name` chooses from: torch's optimizers, and the state each keeps for a parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reallm.config.optimizer import OptimizerConfig
from reallm.model.parameter_names import block_layers, layer_number
from reallm.model.sharding import Shape
from reallm.model.transformer import Transformer

ParamGroups = list[dict[str, Any]]


@dataclass(frozen=True)
class UpdateRule:
    """An optimizer of torch."""

    name: str
    make: Callable[[ParamGroups, OptimizerConfig], torch.optim.Optimizer]
    """Function that makes the optimizer for groups of parameters with their `weight_decay`."""
    state_shapes: Callable[[Shape, OptimizerConfig], Mapping[str, Shape]]
    """Function from the shape of a parameter to those of the tensors kept for it; `()` is the count of its steps."""


def update_rules(network: Transformer, config: OptimizerConfig) -> dict[str, UpdateRule]:
    """The update rule of each parameter of a network, or of a stage of one, by name.

    Muon orthogonalizes the update of a matrix, and is meant for the matrices inside a network: embeddings, the output
    head, norms and biases are left to AdamW (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/). The
    experts of a layer are a stack of matrices, each with an update of its own.
    """
    rule = _RULES[config.name]
    blocks, decayed = block_layers(network.config), decayed_parameters(network)
    return {
        name: ADAMW if rule is MUON and not (name in decayed and layer_number(name) in blocks) else rule
        for name, _ in network.named_parameters()
    }


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


def stepped_tensors(rule: UpdateRule, parameter: nn.Parameter) -> Sequence[nn.Parameter]:
    """What the rule's optimizer steps for a parameter: for Muon each matrix of a stack, in the same memory."""
    if rule is MUON and parameter.dim() > 2:
        return [nn.Parameter(matrix) for matrix in matrices(parameter)]
    return [parameter]


def matrices(stack: Tensor) -> Sequence[Tensor]:
    """The matrices of a stack [..., n, m], not copies."""
    return stack.detach().flatten(0, -3).unbind()


def _adamw(groups: ParamGroups, config: OptimizerConfig) -> torch.optim.Optimizer:
    options = config.options
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(options["beta1"], options["beta2"]), eps=options["eps"], fused=True
    )


def _sgd(groups: ParamGroups, config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.lr, **config.options)


def _adafactor(groups: ParamGroups, config: OptimizerConfig) -> torch.optim.Optimizer:
    options = config.options
    return torch.optim.Adafactor(groups, lr=config.lr, beta2_decay=options["beta2_decay"], d=options["clip_threshold"])


def _muon(groups: ParamGroups, config: OptimizerConfig) -> torch.optim.Optimizer:
    own = {name: config.options[name] for name in ("momentum", "nesterov", "adjust_lr_fn", "ns_steps")}
    return torch.optim.Muon(groups, lr=config.lr, **own)


def _adamw_state(shape: Shape, config: OptimizerConfig) -> Mapping[str, Shape]:
    return {"step": (), "exp_avg": shape, "exp_avg_sq": shape}


def _sgd_state(shape: Shape, config: OptimizerConfig) -> Mapping[str, Shape]:
    return {"momentum_buffer": shape} if config.options["momentum"] else {}


def _adafactor_state(shape: Shape, config: OptimizerConfig) -> Mapping[str, Shape]:
    if len(shape) < 2:
        return {"step": (), "variance": shape}
    return {"step": (), "row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}


def _muon_state(shape: Shape, config: OptimizerConfig) -> Mapping[str, Shape]:
    return {"momentum_buffer": shape}


ADAMW = UpdateRule("adamw", _adamw, _adamw_state)
SGD = UpdateRule("sgd", _sgd, _sgd_state)
ADAFACTOR = UpdateRule("adafactor", _adafactor, _adafactor_state)
MUON = UpdateRule("muon", _muon, _muon_state)
_RULES = {rule.name: rule for rule in (ADAMW, SGD, ADAFACTOR, MUON)}
