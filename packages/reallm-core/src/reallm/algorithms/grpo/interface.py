"""Interface of the policy of `reallm grpo`: it answers prompts, and is trained on its answers.

Shapes: S answers, N tokens of answers.
"""

from __future__ import annotations

from collections.abc import Mapping

from reallm.algorithms.answer_scores import answer_token_logprobs_field
from reallm.algorithms.context import CallContext
from reallm.algorithms.grpo.advantages import Judged, judge
from reallm.algorithms.grpo.config import GRPOConfig
from reallm.algorithms.grpo.loss import loss_settings, trained_answers
from reallm.algorithms.grpo.records import judged_records
from reallm.algorithms.interface import Example
from reallm.algorithms.rl.generation import greedy_answers, planned_kv_tokens, planned_tokens, sample_answers
from reallm.algorithms.rl.minibatches import merged_metrics, train_minibatches
from reallm.algorithms.rl.policy_objective import PolicyObjective
from reallm.algorithms.rl.self_checks import check_completions, check_first_ratio, check_rewards
from reallm.algorithms.rl.total_rewards import completion_metrics, reward_metrics, reward_names
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.model.transformer import Transformer
from reallm.training.engine import TrainEngine
from reallm.training.objective import LossOutput, Totals


class GRPOInterface:
    """The policy: answers each prompt several times, and makes answers likelier that are rewarded more than others.

    Forward passes have no dropout.
    """

    metric_names = PolicyObjective.metric_names
    dropout = False

    def __init__(self, config: GRPOConfig) -> None:
        self._config = config
        self._objective = PolicyObjective(loss_settings(config))
        self._reward_names = reward_names(config)
        self.optimizer_steps = config.optimizer_steps

    def generate(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """Sampled answers with the keys of `rollout_keys`, or in the call `greedy_gen` the most likely ones."""
        if context.call == "greedy_gen":
            return greedy_answers(model, batch, context, self._config)
        return sample_answers(model, batch, context, self._config)

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """`old_logprobs` [N] float32 of the answers' tokens before the step, at the temperature of sampling."""
        return answer_token_logprobs_field(
            model, batch, "old_logprobs", context.max_tokens_per_microbatch, self._config.gen.temperature
        )

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        """The optimizer steps on the answers of a step."""
        judged = judge(batch, self._config)
        self._objective.watch.begin(judged.answers, self._config.keep_rollouts)
        of_steps = train_minibatches(
            engine,
            trained_answers(judged, self._config),
            self._objective,
            context,
            num_minibatches=self._config.num_minibatches,
            num_iterations=self._config.num_iterations,
        )
        check_first_ratio(of_steps[0], exact=self._config.exact)
        difference = self._objective.watch.end(judged.answers, engine.model.mesh)
        context.keep_rollouts(judged_records(judged, self._config, context, difference))
        return merged_metrics(of_steps) | self._metrics_of_answers(judged)

    def _metrics_of_answers(self, judged: Judged) -> dict[str, float]:
        config, rewards = self._config, judged.rewards
        of_rewards = reward_metrics(rewards, judged.totals, judged.groups, self._reward_names)
        of_completions = completion_metrics(judged.lengths, judged.answers["truncated"])
        in_groups = config.baseline in ("group", "others")
        check_rewards(rewards, self._reward_names, of_rewards["frac_reward_zero_std"], in_groups=in_groups)
        check_completions(of_completions, config.gen.max_new_tokens)
        return {**of_rewards, **of_completions, "frac_trained": float(judged.is_trained.double().mean())}

    def prepare(self, batch: NamedArray) -> NamedArray:
        """The answers of a step that are trained on, a sample each, with what the loss reads."""
        return trained_answers(judge(batch, self._config), self._config)

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

    def planned_tokens(self, sample: NamedArray) -> list[int]:
        """The longest that answers to a prompt can be, with the prompt."""
        return planned_tokens(sample, self._config)

    def planned_kv_tokens(self, batch_size: int) -> int:
        """The most tokens whose keys and values are held at once in generation."""
        return planned_kv_tokens(batch_size, self._config)

    def example(self, sample: NamedArray) -> Example:
        """A prompt whose answer is shown to people at each evaluation."""
        return Example(sample["prompt_ids"].tolist())
