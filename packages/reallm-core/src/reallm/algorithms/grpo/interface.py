"""Interface of the policy of `reallm grpo`: it answers prompts, and is trained on its answers.

Shapes: N tokens of answers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from reallm.algorithms.answer_scores import answer_token_logprobs_field
from reallm.algorithms.context import CallContext
from reallm.algorithms.grpo.advantages import Judged, judge
from reallm.algorithms.grpo.config import GRPOConfig
from reallm.algorithms.grpo.loss import loss_settings, trained_answers
from reallm.algorithms.rl.generation import greedy_answers
from reallm.algorithms.rl.policy_interface import PolicyInterface
from reallm.algorithms.rl.policy_objective import PolicyObjective
from reallm.data.namedarray import NamedArray, split
from reallm.engine.real_model import ReaLModel


class GRPOInterface(PolicyInterface[GRPOConfig, Judged]):
    """The policy: answers each prompt several times, and makes answers likelier that are rewarded more than others.

    Forward passes have no dropout.
    """

    def __init__(self, config: GRPOConfig) -> None:
        super().__init__(
            config,
            num_minibatches=config.num_minibatches,
            num_iterations=config.num_iterations,
            limit_key="gen.max_new_tokens",
            in_groups=config.baseline in ("group", "others"),
        )
        self._objective = PolicyObjective(loss_settings(config))

    @property
    def objective(self) -> PolicyObjective:
        """The loss."""
        return self._objective

    def generate(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """Sampled answers with the keys of `rollout_keys`, or in the call `greedy_gen` the most likely ones."""
        if context.call == "greedy_gen":
            return greedy_answers(model, batch, context, self.config)
        return super().generate(model, batch, context)

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """What the policy says of its answers before the step: `old_logprobs` and `entropies` [N] float32, those of
        them that are used."""
        found = answer_token_logprobs_field(
            model,
            batch,
            "old_logprobs",
            context.max_tokens_per_microbatch,
            self.config.gen.temperature,
            entropies="entropies" if "entropies" in self.config.inference_keys else None,
        )
        return split(found, [self.config.inference_keys])[0]

    def judge(self, batch: NamedArray) -> Judged:
        """The answers of a step with their rewards and advantages."""
        return judge(batch, self.config)

    def trained(self, judged: Judged) -> NamedArray:
        """The answers of a step that are trained on, a sample each, with what the loss reads."""
        return trained_answers(judged, self.config)

    def records(self, judged: Judged, context: CallContext, difference: Tensor) -> list[dict[str, Any]]:
        """Records of the first prompts; the KL divergence is estimated by the log-ratio to the reference (k1)."""
        answers = judged.answers
        return judged.records(
            self.config,
            context,
            difference,
            advantages=judged.advantages_of_tokens,
            totals=self.shown_totals(judged),
            kl=answers["logprobs"] - answers["ref_logprobs"] if "ref_logprobs" in answers else None,
        )
