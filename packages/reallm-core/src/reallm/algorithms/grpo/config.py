"""Configuration of group-relative policy optimisation. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from reallm.algorithms.grpo.presets import PRESETS
from reallm.algorithms.rl.config import RewardedConfig
from reallm.algorithms.rl.off_policy import check_off_policy, compares_with_sampled
from reallm.config.args import SamplingArgs
from reallm.config.dataset import batch_size
from reallm.config.presets import Presets
from reallm.errors import ConfigError, counted
from reallm.field_types import value_text
from reallm.options import changed, option

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"]
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""The loss types whose ratio is clipped around 1."""
_READERS: dict[str, tuple[str, ...]] = {
    "epsilon": CLIPPED,
    "epsilon_high": (*CLIPPED, "cispo"),
    "delta": CLIPPED,
    "importance_sampling_level": (*CLIPPED, "cispo", "sapo"),
    "sapo_temperature_pos": ("sapo",),
    "sapo_temperature_neg": ("sapo",),
    "vespo_k_pos": ("vespo",),
    "vespo_k_neg": ("vespo",),
    "vespo_lambda_pos": ("vespo",),
    "vespo_lambda_neg": ("vespo",),
}
"""Key -> the loss types that read it."""


@dataclass(frozen=True)
class GRPOConfig(Presets, RewardedConfig):
    """Policy optimisation by the rewards of several answers to each prompt, compared with each other: GRPO and its kin.

    As a library: `GRPOConfig(actor=ModelArgs(path="..."), reward=RewardArgs(functions=["pkg.module:function"]),
    dataset=PromptDatasetConfig(train_path="..."))`.

    Raises:
        ConfigError: a required value is missing, a value is not allowed, or values contradict each other; names the
            key.
    """

    presets = PRESETS

    gen: SamplingArgs = field(default_factory=SamplingArgs, metadata={"help": "how answers are sampled in training"})
    preset: Literal["dapo", "dr_grpo", "rloo", "reinforce_pp", "remax", "gspo", "cispo"] | None = option(
        None, "a published algorithm, as values of the keys below that are not given; --print-config shows them"
    )
    num_generations: int = option(8, "answers to each prompt, which are a group")
    baseline: Literal["group", "others", "batch", "greedy"] = option(
        "group",
        "what the reward of an answer is compared with: the mean of its group, or of the others in it, or of the step, "
        "or the reward of the most likely answer, which is then generated too",
    )
    scale_rewards: Literal["group", "batch", "none"] = option(
        "group", "whether advantages are divided by the standard deviation of rewards in the group, or in the step"
    )
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = option(
        "sum_then_normalize", "with several rewards: normalize_then_sum makes advantages of each, and sums them (GDPO)"
    )
    loss_type: LossType = option(
        "dapo",
        "loss of a token and how losses are averaged, under TRL's names: dapo and bnpo over the tokens of an optimizer "
        "step, grpo over answers, dr_grpo by gen.max_new_tokens; luspo sums an answer's; the others replace clipping",
    )
    importance_sampling_level: Literal["token", "sequence"] = option(
        "token", "whether a token has its own ratio of probabilities, or the geometric mean of its answer's (GSPO)"
    )
    epsilon: float = option(0.2, "how far below 1 the ratio has an effect")
    epsilon_high: float | None = option(None, "how far above 1, null: as epsilon; for cispo the bound of the ratio")
    delta: float | None = option(None, "bound of the ratio for negative advantages, above 1; null: none")
    sapo_temperature_pos: float = option(1.0, "sapo: temperature for advantages above 0")
    sapo_temperature_neg: float = option(1.05, "sapo: temperature for other advantages")
    vespo_k_pos: float = option(2.0, "vespo: exponent of the ratio for advantages from 0 on")
    vespo_k_neg: float = option(3.0, "vespo: exponent of the ratio for negative advantages")
    vespo_lambda_pos: float = option(3.0, "vespo: decay with the ratio for advantages from 0 on")
    vespo_lambda_neg: float = option(2.0, "vespo: decay with the ratio for negative advantages")
    beta: float = option(0.0, "weight of the KL divergence from the reference; 0: no reference is loaded")
    use_bias_correction_kl: bool = option(
        True, "multiply the estimate of the KL divergence by the ratio, so that its gradient is that of the divergence"
    )
    entropy_coef: float = option(0.0, "weight of the mean entropy, which the loss is lowered by")
    top_entropy_quantile: float = option(
        1.0,
        "share of a step's tokens that have a policy loss: those with the highest entropies, where answers branch "
        "(arXiv 2506.01939 advises 0.2); below 1 it takes a call of the policy, actor_inf",
    )
    off_policy_mask_threshold: float | None = option(
        None,
        "leave answers with a negative advantage out of the policy loss if the mean of log(sampled / current) over "
        "their tokens is more than this, such as 0.5 (DeepSeek-V3.2); null: none",
    )
    importance_sampling_correction: Literal["none", "truncate", "mask"] = option(
        "none",
        "correct the loss for the difference between the policy before the step and what was sampled from: by the "
        "ratio of their probabilities, bounded (truncate), or 0 outside of the bounds (mask)",
    )
    importance_sampling_correction_level: Literal["token", "sequence", "geometric"] = option(
        "token", "whether that ratio is a token's, the product over its answer, or the geometric mean"
    )
    importance_sampling_clip_max: float = option(3.0, "upper bound of that ratio")
    importance_sampling_clip_min: float = option(0.0, "lower bound of that ratio")
    num_minibatches: int = option(1, "optimizer steps into which the prompts of a step are divided")
    num_iterations: int = option(1, "passes over the answers of a step")
    old_logprobs: Literal["rollout", "inference"] = option(
        "rollout",
        "with several optimizer steps in a step, or async_steps, where the probabilities before them come from: from "
        "sampling, or from a call of the policy, actor_inf. Otherwise they are those of the loss, and the ratio is 1",
    )
    mask_truncated_completions: bool = option(
        False, "leave answers that were cut at gen.max_new_tokens out of the loss"
    )
    overlong_buffer: float = option(
        0.0, "share of gen.max_new_tokens at its end in which rewards fall, the longer the answer is (DAPO); 0: none"
    )
    overlong_penalty: float = option(1.0, "by how much they have fallen at gen.max_new_tokens")
    drop_zero_std_groups: bool = option(
        False, "leave groups whose rewards are all equal out of the loss; false: they only have no advantage"
    )
    oversampling: float = option(
        1.0,
        "dynamic sampling: of the dataset.train_bs_n_seqs prompts that are answered in a step, those divided by this "
        "are trained on, the first whose rewards differ, or all such prompts if there are fewer",
    )
    sync_ref_model: bool = option(False, "move the reference towards the policy during training (TR-DPO)")
    ref_model_mixup_alpha: float = option(0.6, "sync_ref_model: share of the policy in the new reference; 1 copies it")
    ref_model_sync_steps: int = option(512, "sync_ref_model: optimizer steps between updates of the reference")

    def __post_init__(self) -> None:
        self.apply_preset()
        super().__post_init__()
        _check_ranges(self)
        _check_advantages(self)
        _check_loss(self)
        _check_reference(self)
        _check_prompts(self)

    @property
    def sampling(self) -> SamplingArgs:
        """How answers are sampled in training."""
        return self.gen

    @property
    def n_answers(self) -> int:
        """Answers to each prompt in training."""
        return self.num_generations

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of each step."""
        return self.num_minibatches * self.num_iterations

    @property
    def inference_keys(self) -> tuple[str, ...]:
        """What the policy says of its answers before a step, in a call of its own, `actor_inf`; empty without one."""
        with_old = self.old_logprobs == "inference" and self.optimizer_steps > 1
        return ("old_logprobs",) * with_old + ("entropies",) * (self.top_entropy_quantile < 1)

    @property
    def compares_with_sampled(self) -> bool:
        """Whether the ratio of the loss is to the probabilities of sampling."""
        return compares_with_sampled(self, self.optimizer_steps, self.async_steps)

    @property
    def clip_high(self) -> float:
        """How far above 1 the ratio has an effect; for cispo, its bound."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def overlong_buffer_len(self) -> int:
        """Tokens at the end of `gen.max_new_tokens` in which rewards fall."""
        return math.ceil(self.overlong_buffer * self.gen.max_new_tokens)

    def n_trained_prompts(self, n_answered: int) -> int:
        """The most prompts that are trained on, of those that are answered."""
        return max(1, int(n_answered / self.oversampling))


def _check_ranges(config: GRPOConfig) -> None:
    for key in ("num_generations", "num_minibatches", "num_iterations", "ref_model_sync_steps", "oversampling"):
        if not getattr(config, key) >= 1:
            raise ConfigError(f"{key}={getattr(config, key)} must be at least 1")
    for key in ("beta", "epsilon", "epsilon_high", "overlong_penalty"):
        if getattr(config, key) is not None and not getattr(config, key) >= 0:
            raise ConfigError(f"{key}={getattr(config, key)} must be at least 0")
    for key in ("sapo_temperature_pos", "sapo_temperature_neg", "vespo_lambda_pos", "vespo_lambda_neg"):
        if not getattr(config, key) > 0:
            raise ConfigError(f"{key}={getattr(config, key)} must be more than 0")
    if not math.isfinite(config.entropy_coef):
        raise ConfigError(f"entropy_coef={config.entropy_coef} must be a finite number")
    if not 0 <= config.overlong_buffer <= 1:
        raise ConfigError(
            f"overlong_buffer={config.overlong_buffer} must be from 0 to 1, a share of gen.max_new_tokens"
        )
    if not 0 <= config.top_entropy_quantile <= 1:
        raise ConfigError(f"top_entropy_quantile={config.top_entropy_quantile} must be from 0 to 1, a share of tokens")
    if config.off_policy_mask_threshold is not None and not config.off_policy_mask_threshold > 0:
        raise ConfigError(f"off_policy_mask_threshold={config.off_policy_mask_threshold} must be more than 0")
    if config.delta is not None and not config.delta > 1:
        raise ConfigError(f"delta={config.delta} must be more than 1, the ratio of an unchanged policy")


def _check_advantages(config: GRPOConfig) -> None:
    alone = config.num_generations == 1
    if alone and config.baseline in ("group", "others"):
        raise ConfigError(
            f"num_generations=1 with baseline={config.baseline}: one answer has no others to compare with; raise "
            "num_generations, or set baseline=batch or baseline=greedy"
        )
    if alone and config.scale_rewards == "group":
        raise ConfigError(
            "num_generations=1 with scale_rewards=group: the reward of one answer has no standard deviation; raise "
            "num_generations, or set scale_rewards=batch or scale_rewards=none"
        )
    if config.baseline == "batch" and config.scale_rewards == "group":
        raise ConfigError(
            "scale_rewards=group does not go together with baseline=batch; set scale_rewards=batch or none"
        )
    if config.drop_zero_std_groups and alone:
        raise ConfigError(
            "drop_zero_std_groups=true with num_generations=1 would leave out everything; set it to false"
        )
    if config.oversampling > 1 and not config.drop_zero_std_groups:
        raise ConfigError(
            f"oversampling={config.oversampling} answers more prompts than are trained on, to replace groups that are "
            "dropped; set drop_zero_std_groups=true"
        )
    if config.multi_objective_aggregation == "normalize_then_sum":
        if config.baseline != "group" or config.scale_rewards != "group":
            raise ConfigError(
                "multi_objective_aggregation=normalize_then_sum normalizes each reward by mean and standard deviation "
                "of the group; leave baseline and scale_rewards out"
            )
        if len(config.reward.functions) + bool(config.reward.path) < 2:
            raise ConfigError("multi_objective_aggregation=normalize_then_sum has no effect on a single reward")


def _check_loss(config: GRPOConfig) -> None:
    for key, value in changed(config, _READERS).items():
        if config.loss_type not in _READERS[key]:
            raise ConfigError(
                f"{key}={value_text(value)} has no effect on loss_type={config.loss_type}; it is for "
                f"{', '.join(_READERS[key])}"
            )
    if config.loss_type == "luspo" and config.importance_sampling_level != "sequence":
        raise ConfigError("loss_type=luspo needs importance_sampling_level=sequence")
    if config.loss_type == "cispo" and config.clip_high < 1:
        raise ConfigError(
            f"epsilon_high={config.epsilon_high}: loss_type=cispo bounds the ratio itself, which is 1 for an unchanged "
            "policy; give a bound above 1, such as epsilon_high=5"
        )
    if config.loss_type in CLIPPED and config.epsilon >= 1:
        raise ConfigError(f"epsilon={config.epsilon} must be below 1: ratios are clipped at 1 - epsilon")
    check_off_policy(
        config, config.optimizer_steps, config.async_steps, more_steps=("num_minibatches", "num_iterations")
    )
    if not config.overlong_buffer and changed(config, ["overlong_penalty"]):
        raise ConfigError(f"overlong_penalty={config.overlong_penalty} has no effect without overlong_buffer")


def _check_reference(config: GRPOConfig) -> None:
    if not 0 < config.ref_model_mixup_alpha <= 1:
        raise ConfigError(f"ref_model_mixup_alpha={config.ref_model_mixup_alpha} must be more than 0 and at most 1")
    if config.beta:
        return
    if config.sync_ref_model:
        raise ConfigError("sync_ref_model=true: with beta=0 there is no reference; set beta")
    if not config.use_bias_correction_kl:
        raise ConfigError("use_bias_correction_kl=false has no effect with beta=0; set beta")


def _check_prompts(config: GRPOConfig) -> None:
    n = config.n_trained_prompts(batch_size(config.dataset, "train"))
    if n < config.num_minibatches:
        raise ConfigError(
            f"num_minibatches={config.num_minibatches} is more than the {counted(n, 'prompt')} of a step; lower it, or "
            "raise dataset.train_bs_n_seqs"
        )
