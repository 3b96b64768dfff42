"""Settings of a run that its costs depend on: dtypes, optimizers, micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from reallm.algorithms.graph import Graph
from reallm.config.optimizer import OptimizerConfig
from reallm.config.training import (
    TrainingConfig,
    call_args_of,
    max_tokens_per_microbatch,
    model_args,
    role_optimizer,
)
from reallm.dtype_device import as_dtype
from reallm.model.config import GradientCheckpointing
from reallm.planning.machine import Machine
from reallm.specs import ModelFunctionCall


@dataclass(frozen=True)
class RoleSettings:
    """How the model of one role is computed."""

    dtype: torch.dtype = torch.bfloat16
    gradient_checkpointing: GradientCheckpointing = "none"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    max_tokens: int = 8192
    """Most tokens of a micro-batch; a longer sequence is one of its own."""


@dataclass(frozen=True)
class CostSettings:
    """Settings of a run that its costs depend on, besides models, machine and workload."""

    roles: Mapping[str, RoleSettings]
    zero: int = 1
    """ZeRO level of layouts with FSDP."""
    sequence_parallel: bool = False
    reward_seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds that a reward takes for one answer, by the name of the call; 0 for others."""
    max_tokens: Mapping[str, int] = field(default_factory=dict)
    """The most tokens of a micro-batch, of calls that have a limit of their own, by name."""

    @classmethod
    def of(cls, config: TrainingConfig, graph: Graph, machine: Machine) -> CostSettings:
        """The settings of a run's configuration on a machine."""
        roles = {}
        for role in graph.roles:
            args = model_args(config, role)
            roles[role] = RoleSettings(
                _dtype(args.dtype, machine),
                args.gradient_checkpointing,
                role_optimizer(config, role),
                max_tokens_per_microbatch(config, role),
            )
        limits = {name: args.max_tokens_per_microbatch for name, args in call_args_of(config).items()}
        return cls(
            roles,
            config.parallel.zero,
            config.parallel.sequence_parallel,
            max_tokens={name: limit for name, limit in limits.items() if limit},
        )

    def max_tokens_of(self, call: ModelFunctionCall) -> int:
        """The most tokens of a micro-batch of a call."""
        return self.max_tokens.get(call.name) or self.roles[call.role].max_tokens


def _dtype(name: str, machine: Machine) -> torch.dtype:
    if name == "auto":
        return torch.float32 if machine.device == "cpu" else torch.bfloat16
    return as_dtype(name)
