"""What the configurations of algorithms of reinforcement learning have in common. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from reallm.config.args import CallArgs, ModelArgs, ReferenceArgs, RewardArgs, SamplingArgs, dataset_option
from reallm.config.training import TrainingConfig
from reallm.errors import ConfigError, counted
from reallm.options import is_missing, option
from reallm.parallel.layout import Layout


@dataclass(frozen=True)
class RolloutConfig(TrainingConfig):
    """An actor that is trained on answers that it samples itself.

    Raises:
        ConfigError: a required value is missing, a value is not allowed, or values contradict each other; names the
            key.
    """

    actor: ModelArgs = field(default_factory=ModelArgs, metadata={"help": "the policy, which is trained"})
    actor_gen: CallArgs = field(default_factory=CallArgs, metadata={"help": "where answers are sampled"})
    actor_inf: CallArgs = field(
        default_factory=CallArgs, metadata={"help": "where the policy scores its answers before a step"}
    )
    actor_train: CallArgs = field(default_factory=CallArgs, metadata={"help": "where the policy is trained"})
    dataset: Any = dataset_option("prompt", "prompts to train on")
    eval_temperature: float = option(0.0, "temperature of the answers to validation prompts; 0: the most likely tokens")
    eval_num_generations: int = option(1, "answers to each validation prompt")
    exact: bool = option(
        False, "compute the same log-probabilities in sampling and in training, bit for bit, which is slower"
    )
    async_steps: int = option(
        0,
        "steps between the sampling of answers and the training on them, so that both can be done at the same time on "
        "processes of their own; 0: answers are trained on in the step that samples them",
    )
    keep_rollouts: int | None = option(
        4, "prompts of each step whose answers are kept in rollouts.jsonl; null: all, 0: none"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, lowest in {
            "eval_temperature": 0,
            "eval_num_generations": 1,
            "async_steps": 0,
            "keep_rollouts": 0,
        }.items():
            value = getattr(self, key)
            if value is not None and not value >= lowest:
                raise ConfigError(f"{key}={value} must be at least {lowest}")
        if self.eval_num_generations > 1 and self.eval_temperature == 0:
            raise ConfigError(
                f"eval_num_generations={self.eval_num_generations} with eval_temperature=0 would give equal answers; "
                "raise eval_temperature"
            )

    @property
    def sampling(self) -> SamplingArgs:
        """How answers are sampled in training."""
        raise NotImplementedError

    @property
    def n_answers(self) -> int:
        """Answers to each prompt in training."""
        return 1


@dataclass(frozen=True)
class RewardedConfig(RolloutConfig):
    """An actor that is trained to get rewards, held to a reference.

    Raises:
        ConfigError: as its base class.
    """

    one_of: ClassVar[tuple[tuple[str, ...], ...]] = (("reward.functions", "reward.path"),)

    ref: ReferenceArgs = field(
        default_factory=ReferenceArgs, metadata={"help": "the reference, which the policy is held to; never trained"}
    )
    reward: RewardArgs = field(default_factory=RewardArgs, metadata={"help": "what rewards answers"})
    ref_inf: CallArgs = field(default_factory=CallArgs, metadata={"help": "where the reference scores answers"})
    rew_inf: CallArgs = field(default_factory=CallArgs, metadata={"help": "where the reward model scores answers"})
    rew_fn: CallArgs = field(default_factory=CallArgs, metadata={"help": "where reward functions are called"})
    reward_weights: list[float] | None = option(
        None, "weights of the reward functions in their order, and then of the reward model; null: 1"
    )
    reward_timeout_s: float = option(15.0, "seconds after which a call of a reward function is ended")
    reward_processes: int | None = option(None, "processes that call reward functions; null: one for each core")
    reward_on_error: float | None = option(
        None, "reward of an answer for which a function raises or takes too long; null: none, it does not count"
    )

    def __post_init__(self) -> None:
        if not self.ref.path and not is_missing(self.actor.path):
            object.__setattr__(self, "ref", self.ref.following(self.actor))
        super().__post_init__()
        n_rewards = len(self.reward.functions) + bool(self.reward.path)
        if not n_rewards:
            raise ConfigError(
                "nothing rewards answers; set reward.path to a reward model, or reward to the name of a function"
            )
        if self.reward_weights is not None and len(self.reward_weights) != n_rewards:
            raise ConfigError(
                f"reward_weights has {counted(len(self.reward_weights), 'number')} for {counted(n_rewards, 'reward')}; "
                "give one for each function and, after them, one for the reward model"
            )
        if self.rew_fn.layout is not None and Layout.parse(self.rew_fn.layout).size > 1:
            raise ConfigError(
                f"rew_fn.layout={self.rew_fn.layout}: reward functions are called by one process, which starts others "
                "for them (reward_processes); write dp1, or dp1@ and a rank"
            )
        if not self.reward_timeout_s > 0:
            raise ConfigError(f"reward_timeout_s={self.reward_timeout_s} must be more than 0")
        if self.reward_on_error is not None and not math.isfinite(self.reward_on_error):
            raise ConfigError(f"reward_on_error={self.reward_on_error} must be a finite number, or null for none")
        if self.reward_processes is not None and self.reward_processes < 1:
            raise ConfigError(f"reward_processes={self.reward_processes} must be at least 1")
