"""Interface of the policy of `reallm ppo`: it answers prompts, and is trained on its answers.

Shapes: S answers, N tokens of answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from reallm.algorithms.context import CallContext
from reallm.algorithms.ppo.advantages import Judged, judge, kl_controller
from reallm.algorithms.ppo.config import PPOConfig
from reallm.algorithms.rl.policy_interface import PolicyInterface
from reallm.algorithms.rl.policy_loss_settings import PolicyLossSettings
from reallm.algorithms.rl.policy_objective import PolicyObjective
from reallm.data.namedarray import NamedArray
from reallm.training.engine import TrainEngine


class PPOActorInterface(PolicyInterface[PPOConfig, Judged]):
    """The policy: answers each prompt, and makes the tokens likelier that led to more reward than the critic expected.

    Forward passes have no dropout.
    """

    metric_names = (*PolicyInterface.metric_names, "objective/kl", "kl_coef")

    def __init__(self, config: PPOConfig) -> None:
        super().__init__(
            config,
            num_minibatches=config.ppo.ppo_n_minibatches,
            num_iterations=config.ppo.ppo_n_epochs,
            limit_key="ppo.gen.max_new_tokens",
            in_groups=False,
        )
        self._controller = kl_controller(config.ppo)

    @property
    def objective(self) -> PolicyObjective:
        """The loss, with the weight that the KL divergence has in the step."""
        args = self.config.ppo
        settings = PolicyLossSettings(
            eps_low=args.eps_clip,
            eps_high=args.eps_clip,
            delta=args.dual_clip,
            beta=self._controller.coef if args.kl_penalty == "loss" else 0.0,
            entropy_coef=args.entropy_coef,
            temperature=args.gen.temperature,
            correction=args.importance_sampling_correction,
            correction_level=args.importance_sampling_correction_level,
            correction_lowest=args.importance_sampling_clip_min,
            correction_highest=args.importance_sampling_clip_max,
        )
        return PolicyObjective(settings)

    def judge(self, batch: NamedArray) -> Judged:
        """The answers of a step with their rewards, advantages and returns."""
        return judge(batch, self.config, self._controller.coef)

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        """The optimizer steps on the answers of a step, after which the weight of the KL divergence may change."""
        judged = self.judge(batch)
        metrics = self.train_on(judged, engine, context)
        self._controller.update(judged.kl_of_answers, len(judged.totals))
        return metrics

    def trained(self, judged: Judged) -> NamedArray:
        """The answers of a step that are trained on, a sample each, with what the loss reads: a mean over tokens."""
        args = self.config.ppo
        return judged.for_policy(
            judged.advantages,
            "tokens",
            args.gen.max_new_tokens,
            with_sampled=self.config.compares_with_sampled,
            with_reference=args.kl_penalty == "loss",
        )

    def records(self, judged: Judged, context: CallContext, difference: Tensor) -> list[dict[str, Any]]:
        """Records of the first prompts."""
        return judged.records(
            self.config,
            context,
            difference,
            advantages=judged.advantages,
            totals=self.shown_totals(judged),
            kl=judged.kl if "ref_logprobs" in judged.answers else None,
        )

    def shown_totals(self, judged: Judged) -> Tensor:
        """[S] float64: the rewards as functions and model gave them, before they are scaled and clipped."""
        return judged.rewards.totals

    def metrics_of_answers(self, judged: Judged) -> dict[str, float]:
        """Metrics of rewards, lengths and the KL divergence of a step."""
        metrics = super().metrics_of_answers(judged)
        del metrics["frac_reward_zero_std"]  # answers are not compared in groups
        if "ref_logprobs" in judged.answers:
            metrics |= {"objective/kl": judged.kl_of_answers, "kl_coef": self._controller.coef}
            if self.config.ppo.kl_penalty == "reward":  # otherwise it is the loss's
                metrics["kl"] = float(judged.kl.mean()) if len(judged.kl) else 0.0
        return metrics

    def state(self) -> Mapping[str, Any]:
        """The weight of the KL divergence, if it is adaptive."""
        return self._controller.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self._controller.load_state(state)
