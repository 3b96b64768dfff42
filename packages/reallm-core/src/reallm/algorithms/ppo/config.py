"""Configuration of proximal policy optimisation. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from reallm.algorithms.rl.config import RewardedConfig
from reallm.algorithms.rl.off_policy import check_off_policy, compares_with_sampled
from reallm.config.args import CallArgs, CriticArgs, SamplingArgs
from reallm.config.dataset import batch_size
from reallm.config.group import ConfigGroup
from reallm.errors import ConfigError, counted
from reallm.field_types import check_fields, value_text
from reallm.options import changed, is_missing, option


@dataclass(frozen=True)
class ValueModelArgs(CriticArgs):
    """A model of the value of unfinished answers. The configuration of the algorithm chooses its path if none is given.

    Raises:
        ConfigError: as `ModelArgs`.
    """

    path: str | None = option(  # type: ignore[assignment]  # never None in a whole configuration
        None,
        "HuggingFace checkpoint that the critic starts from: a reward model, or a language model, which gets a scalar "
        "head; null: reward.path, or without a reward model actor.path",
    )


@dataclass(frozen=True)
class PPOArgs(ConfigGroup, group="ppo"):
    """The algorithm: sampling, rewards, advantages, and the losses of policy and critic.

    Raises:
        ConfigError: a value is not allowed; names the field without its group.
    """

    gen: SamplingArgs = field(default_factory=SamplingArgs, metadata={"help": "how answers are sampled in training"})
    ppo_n_minibatches: int = option(4, "optimizer steps into which the prompts of a step are divided")
    ppo_n_epochs: int = option(1, "passes over the answers of a step")
    old_logprobs: Literal["rollout", "inference"] = option(
        "rollout",
        "with several optimizer steps in a step, or async_steps, where the probabilities before them come from: from "
        "sampling, or from a call of the policy, actor_inf",
    )
    importance_sampling_correction: Literal["none", "truncate", "mask"] = option(
        "none",
        "correct the policy's loss for the difference between the policy before the step and what was sampled from: by "
        "the ratio of their probabilities, bounded (truncate), or 0 outside of the bounds (mask)",
    )
    importance_sampling_correction_level: Literal["token", "sequence", "geometric"] = option(
        "token", "whether that ratio is a token's, the product over its answer, or the geometric mean"
    )
    importance_sampling_clip_max: float = option(3.0, "upper bound of that ratio")
    importance_sampling_clip_min: float = option(0.0, "lower bound of that ratio")
    kl_ctl: float = option(
        0.1, "weight of the KL divergence from the reference, at first if it is adaptive; 0: no reference is loaded"
    )
    kl_penalty: Literal["reward", "loss"] = option(
        "reward",
        "where the divergence counts: reward subtracts log(policy / reference) of each token from its reward, loss "
        "adds an estimate with the right gradient to the policy's loss",
    )
    use_adaptive_kl_ctl: bool = option(False, "adapt the weight so that the divergence stays at adaptive_kl_target")
    adaptive_kl_target: float = option(6.0, "use_adaptive_kl_ctl: wanted divergence of a whole answer, in nats")
    adaptive_kl_horizon: float = option(
        10000.0, "use_adaptive_kl_ctl: answers in which a divergence that is far off changes the weight by 20 %"
    )
    reward_output_scaling: float = option(1.0, "factor of rewards, after reward_output_bias is subtracted")
    reward_output_bias: float = option(0.0, "what is subtracted from rewards")
    max_reward_clip: float = option(20.0, "largest size of a reward after that; larger ones are clipped")
    truncated_reward: Literal["reward", "penalty", "bootstrap"] = option(
        "reward",
        "what answers get that were cut at gen.max_new_tokens: their reward; their reward minus missing_eos_penalty; "
        "or their reward and, as if they went on, the critic's value of what they were cut at",
    )
    missing_eos_penalty: float = option(1.0, "truncated_reward=penalty: what is subtracted, after clipping")
    discount: float = option(1.0, "weight of a reward one token later")
    gae_lambda: float = option(
        0.95, "from 0, advantages from the critic's next value, to 1, advantages from whole returns"
    )
    adv_norm: bool = option(
        True, "shift and scale advantages to mean 0 and standard deviation 1 over the trained tokens of a step"
    )
    eps_clip: float = option(0.2, "how far from 1 the ratio of the policy's probabilities has an effect")
    dual_clip: float | None = option(
        None, "bound of the ratio for negative advantages, above 1 (arXiv 1912.09729); null: none"
    )
    entropy_coef: float = option(0.0, "weight of the mean entropy, which the policy's loss is lowered by")
    value_eps_clip: float = option(0.2, "how far the critic's values may move in a step before they have no effect")
    value_norm: bool = option(
        True, "train the critic on returns that are shifted and scaled by their running mean and standard deviation"
    )
    value_norm_type: Literal["exp", "ma"] = option(
        "exp", "value_norm: exponential moving averages, or averages over all returns so far"
    )
    value_norm_beta: float = option(0.99995, "value_norm_type=exp: weight of earlier steps in the averages")
    value_norm_eps: float = option(1e-5, "value_norm: smallest variance")

    def __post_init__(self) -> None:
        check_fields(self)
        _check_ranges(self)
        _check_used(self)

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of each step, of the policy and of the critic."""
        return self.ppo_n_minibatches * self.ppo_n_epochs


@dataclass(frozen=True)
class PPOConfig(RewardedConfig):
    """Policy optimisation by rewards, with a critic that values unfinished answers: PPO.

    As a library: `PPOConfig(actor=ModelArgs(path="..."), reward=RewardArgs(path="..."),
    dataset=PromptDatasetConfig(train_path="..."), ppo=PPOArgs(kl_ctl=0.05))`.

    Raises:
        ConfigError: a required value is missing, a value is not allowed, or values contradict each other; names the
            key.
    """

    critic: ValueModelArgs = field(
        default_factory=ValueModelArgs,
        metadata={"help": "the critic, which is trained to predict the rewards of unfinished answers"},
    )
    ppo: PPOArgs = field(
        default_factory=PPOArgs, metadata={"help": "sampling, rewards, advantages, and the losses of policy and critic"}
    )
    critic_inf: CallArgs = field(
        default_factory=CallArgs, metadata={"help": "where the critic values answers before a step"}
    )
    critic_train: CallArgs = field(default_factory=CallArgs, metadata={"help": "where the critic is trained"})

    def __post_init__(self) -> None:
        if not self.critic.path and not is_missing(self.actor.path):
            begun = self.reward if self.reward.path else self.actor
            critic = dataclasses.replace(self.critic, path=begun.path, implementation=begun.implementation)
            object.__setattr__(self, "critic", critic)
        super().__post_init__()
        n = batch_size(self.dataset, "train")
        if n < self.ppo.ppo_n_minibatches:
            raise ConfigError(
                f"ppo.ppo_n_minibatches={self.ppo.ppo_n_minibatches} is more than the {counted(n, 'prompt')} of a step;"
                " lower it, or raise dataset.train_bs_n_seqs"
            )
        check_off_policy(
            self.ppo,
            self.ppo.optimizer_steps,
            self.async_steps,
            group="ppo.",
            more_steps=("ppo_n_minibatches", "ppo_n_epochs"),
        )

    @property
    def sampling(self) -> SamplingArgs:
        """How answers are sampled in training."""
        return self.ppo.gen

    @property
    def compares_with_sampled(self) -> bool:
        """Whether the ratio of the policy's loss is to the probabilities of sampling."""
        return compares_with_sampled(self.ppo, self.ppo.optimizer_steps, self.async_steps)


_AT_LEAST_1 = ("ppo_n_minibatches", "ppo_n_epochs")
_AT_LEAST_0 = ("kl_ctl", "missing_eos_penalty")
_ABOVE_0 = (
    "adaptive_kl_target", "adaptive_kl_horizon", "max_reward_clip", "eps_clip", "value_eps_clip", "value_norm_eps",
)  # fmt: skip
_FROM_0_TO_1 = ("discount", "gae_lambda")
_FINITE = ("reward_output_scaling", "reward_output_bias", "entropy_coef")
_READ_WITH = {
    "adaptive_kl_target": ("use_adaptive_kl_ctl", True),
    "adaptive_kl_horizon": ("use_adaptive_kl_ctl", True),
    "missing_eos_penalty": ("truncated_reward", "penalty"),
    "value_norm_type": ("value_norm", True),
    "value_norm_beta": ("value_norm", True),
    "value_norm_eps": ("value_norm", True),
}
"""Key -> the key and the value without which it has no effect."""


def _check_ranges(args: PPOArgs) -> None:
    for keys, holds, allowed in (
        (_AT_LEAST_1, lambda value: value >= 1, "must be at least 1"),
        (_AT_LEAST_0, lambda value: value >= 0, "must be at least 0"),
        (_ABOVE_0, lambda value: value > 0, "must be more than 0"),
        (_FROM_0_TO_1, lambda value: 0 <= value <= 1, "must be from 0 to 1"),
        (_FINITE, math.isfinite, "must be a finite number"),
    ):
        for key in keys:
            if not holds(getattr(args, key)):
                raise ConfigError(f"{key}={getattr(args, key)} {allowed}")
    if not args.eps_clip < 1:
        raise ConfigError(f"eps_clip={args.eps_clip} must be below 1: ratios are clipped at 1 - eps_clip")
    if args.dual_clip is not None and not args.dual_clip > 1 + args.eps_clip:
        raise ConfigError(f"dual_clip={args.dual_clip} must be more than 1 + eps_clip; 3 is usual")
    if not 0 < args.value_norm_beta < 1:
        raise ConfigError(f"value_norm_beta={args.value_norm_beta} must be more than 0 and less than 1")
    if args.reward_output_scaling == 0:
        raise ConfigError("reward_output_scaling=0 would make all rewards 0")


def _check_used(args: PPOArgs) -> None:
    """Refuse a setting that differs from its default and that nothing reads: it would be silently ignored."""
    for key, value in changed(args, _READ_WITH).items():
        reader, wanted = _READ_WITH[key]
        if getattr(args, reader) != wanted:
            raise ConfigError(f"{key}={value_text(value)} has no effect without {reader}={value_text(wanted)}")
    if not args.kl_ctl and (args.use_adaptive_kl_ctl or args.kl_penalty == "loss"):
        key = "use_adaptive_kl_ctl=true" if args.use_adaptive_kl_ctl else "kl_penalty=loss"
        raise ConfigError(f"{key} has no effect with kl_ctl=0, which has no reference; set kl_ctl")
