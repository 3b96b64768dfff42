"""Interface of the policy of `reallm ppo`: it answers prompts, and is trained on its answers.

Shapes: N tokens of answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reallm.algorithms.answer_scores import answer_token_logprobs_field
from reallm.algorithms.context import CallContext
from reallm.algorithms.interface import Example
from reallm.algorithms.ppo.advantages import Judged, judge, kl_controller
from reallm.algorithms.ppo.config import PPOConfig
from reallm.algorithms.ppo.records import judged_records
from reallm.algorithms.rl.aggregation import token_weights
from reallm.algorithms.rl.generation import planned_kv_tokens, planned_tokens, sample_answers
from reallm.algorithms.rl.keys import ANSWERS, KEPT_MASS
from reallm.algorithms.rl.minibatches import merged_metrics, train_minibatches
from reallm.algorithms.rl.policy_loss_settings import PolicyLossSettings
from reallm.algorithms.rl.policy_objective import PolicyObjective
from reallm.algorithms.rl.self_checks import check_completions, check_first_ratio, check_rewards
from reallm.algorithms.rl.total_rewards import completion_metrics, reward_metrics, reward_names
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.model.transformer import Transformer
from reallm.training.engine import TrainEngine
from reallm.training.objective import LossOutput, Totals


class PPOActorInterface:
    """The policy: answers each prompt, and makes the tokens likelier that led to more reward than the critic expected.

    Forward passes have no dropout.
    """

    metric_names = PolicyObjective.metric_names
    dropout = False

    def __init__(self, config: PPOConfig) -> None:
        self._config = config
        self._controller = kl_controller(config.ppo)
        self._reward_names = reward_names(config)
        self.optimizer_steps = config.ppo.optimizer_steps

    def generate(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """Sampled answers with the keys of `rollout_keys`."""
        return sample_answers(model, batch, context, self._config)

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """`old_logprobs` [N] float32 of the answers' tokens before the step, at the temperature of sampling."""
        return answer_token_logprobs_field(
            model, batch, "old_logprobs", context.max_tokens_per_microbatch, self._config.ppo.gen.temperature
        )

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        """The optimizer steps on the answers of a step."""
        args, judged = self._config.ppo, judge(batch, self._config, self._controller.coef)
        objective = self._objective
        objective.watch.begin(judged.answers, self._config.keep_rollouts)
        of_steps = train_minibatches(
            engine,
            self._trained(judged),
            objective,
            context,
            num_minibatches=args.ppo_n_minibatches,
            num_iterations=args.ppo_n_epochs,
        )
        check_first_ratio(of_steps[0])
        difference = objective.watch.end(judged.answers, engine.model.mesh)
        context.keep_rollouts(judged_records(judged, self._config, context, difference))
        metrics = merged_metrics(of_steps) | self._metrics_of_answers(judged)
        self._controller.update(judged.kl_of_answers, len(judged.totals))
        return metrics

    def prepare(self, batch: NamedArray) -> NamedArray:
        """The answers of a step that are trained on, a sample each, with what the loss reads."""
        return self._trained(judge(batch, self._config, self._controller.coef))

    def n_tokens(self, batch: NamedArray) -> list[int]:
        """Tokens of each answer with its prompt."""
        return self._objective.n_tokens(batch)

    def loss_weight(self, batch: NamedArray) -> float | Mapping[str, float]:
        """Weights of the terms of the loss."""
        return self._objective.loss_weight(batch)

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """Summed loss of each term."""
        return self._objective.loss(network, batch)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Metrics of the loss, under TRL's names."""
        return self._objective.metrics(totals)

    def state(self) -> Mapping[str, Any]:
        """The weight of the KL divergence, if it is adaptive."""
        return self._controller.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self._controller.load_state(state)

    def planned_tokens(self, sample: NamedArray) -> list[int]:
        """The longest that an answer to a prompt can be, with the prompt."""
        return planned_tokens(sample, self._config)

    def planned_kv_tokens(self, batch_size: int) -> int:
        """The most tokens whose keys and values are held at once in generation."""
        return planned_kv_tokens(batch_size, self._config)

    def example(self, sample: NamedArray) -> Example:
        """A prompt whose answer is shown to people at each evaluation."""
        return Example(sample["prompt_ids"].tolist())

    @property
    def _objective(self) -> PolicyObjective:
        args = self._config.ppo
        settings = PolicyLossSettings(
            eps_low=args.eps_clip,
            eps_high=args.eps_clip,
            delta=args.dual_clip,
            beta=self._controller.coef if args.kl_penalty == "loss" else 0.0,
            entropy_coef=args.entropy_coef,
            temperature=args.gen.temperature,
        )
        return PolicyObjective(settings)

    def _trained(self, judged: Judged) -> NamedArray:
        """What the loss reads, a mean over the tokens of an optimizer step."""
        answers, of_tokens = judged.answers, {"advantages": judged.advantages}
        of_tokens["weights"], norms = token_weights(
            "tokens", judged.lengths, judged.groups, judged.is_trained_token, self._config.ppo.gen.max_new_tokens
        )
        if self.optimizer_steps > 1 and "old_logprobs" not in answers:
            of_tokens["old_logprobs"] = answers["logprobs"]
        read = [*ANSWERS, "logprobs", KEPT_MASS, "old_logprobs"]
        read += ["ref_logprobs"] if self._config.ppo.kl_penalty == "loss" else []
        return judged.trained([key for key in read if key in answers], of_tokens, {"norms": norms})

    def _metrics_of_answers(self, judged: Judged) -> dict[str, float]:
        of_rewards = reward_metrics(judged.rewards, judged.rewards.totals, judged.groups, self._reward_names)
        of_completions = completion_metrics(judged.lengths, judged.answers["truncated"])
        check_rewards(judged.rewards, self._reward_names, of_rewards.pop("frac_reward_zero_std"), in_groups=False)
        check_completions(of_completions, self._config.ppo.gen.max_new_tokens, "ppo.gen.max_new_tokens")
        of_kl = {}
        if "ref_logprobs" in judged.answers:
            of_kl = {"objective/kl": judged.kl_of_answers, "kl_coef": self._controller.coef}
            if self._config.ppo.kl_penalty == "reward":  # otherwise it is the loss's
                of_kl["kl"] = float(judged.kl.mean()) if len(judged.kl) else 0.0
        return {**of_rewards, **of_completions, **of_kl, "frac_trained": float(judged.is_trained.double().mean())}
