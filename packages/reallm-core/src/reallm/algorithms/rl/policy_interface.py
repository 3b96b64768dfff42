"""`PolicyInterface`: what the interfaces of policies that are trained on rewarded answers of their own have in common.

Shapes: N tokens of answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from reallm.algorithms.answer_scores import answer_token_logprobs_field
from reallm.algorithms.context import CallContext
from reallm.algorithms.interface import Example
from reallm.algorithms.rl.config import RewardedConfig
from reallm.algorithms.rl.generation import planned_kv_tokens, planned_tokens, sample_answers
from reallm.algorithms.rl.judged_answers import JudgedAnswers
from reallm.algorithms.rl.minibatches import merged_metrics, train_minibatches
from reallm.algorithms.rl.policy_objective import PolicyObjective
from reallm.algorithms.rl.rollout import staleness
from reallm.algorithms.rl.self_checks import check_completions, check_first_ratio, check_rewards
from reallm.algorithms.rl.total_rewards import (
    COMPLETION_METRICS,
    REWARD_METRICS,
    completion_metrics,
    reward_metrics,
    reward_names,
)
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.model.transformer import Transformer
from reallm.training.engine import TrainEngine
from reallm.training.objective import LossOutput, Totals

ConfigT = TypeVar("ConfigT", bound=RewardedConfig)
JudgedT = TypeVar("JudgedT", bound=JudgedAnswers)


class PolicyInterface(Generic[ConfigT, JudgedT]):
    """A policy that answers prompts and is trained on its answers.

    A subclass says how answers are judged, what of them is trained on, and by which loss. Forward passes have no
    dropout.

    Args:
        config: the configuration of the run.
        num_minibatches: mini-batches into which the prompts of a step are divided.
        num_iterations: passes over the answers of a step.
        limit_key: the key of the longest answer, for notices.
        in_groups: whether answers are compared within their group.
    """

    metric_names: ClassVar[tuple[str, ...]] = (
        *PolicyObjective.metric_names,
        *REWARD_METRICS,
        *COMPLETION_METRICS,
        "frac_trained",
        "staleness",
    )
    dropout = False

    def __init__(
        self, config: ConfigT, *, num_minibatches: int, num_iterations: int, limit_key: str, in_groups: bool
    ) -> None:
        self.config = config
        self.optimizer_steps = num_minibatches * num_iterations
        self._num_minibatches, self._num_iterations = num_minibatches, num_iterations
        self._limit_key, self._in_groups = limit_key, in_groups
        self._reward_names = reward_names(config)

    @property
    def objective(self) -> PolicyObjective:
        """The loss."""
        raise NotImplementedError

    def judge(self, batch: NamedArray) -> JudgedT:
        """The answers of a step with their rewards."""
        raise NotImplementedError

    def trained(self, judged: JudgedT) -> NamedArray:
        """The answers of a step that are trained on, a sample each, with what the loss reads."""
        raise NotImplementedError

    def records(self, judged: JudgedT, context: CallContext, difference: Tensor) -> list[dict[str, Any]]:
        """What is kept of the answers of a step, for people to read; see `JudgedAnswers.records`."""
        raise NotImplementedError

    def generate(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """Sampled answers with the keys of `rollout_keys`."""
        return sample_answers(model, batch, context, self.config)

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """`old_logprobs` [N] float32 of the answers' tokens before the step, at the temperature of sampling."""
        temperature = self.config.sampling.temperature
        return answer_token_logprobs_field(model, batch, "old_logprobs", context.max_tokens_per_microbatch, temperature)

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        """The optimizer steps on the answers of a step."""
        return self.train_on(self.judge(batch), engine, context)

    def train_on(self, judged: JudgedT, engine: TrainEngine, context: CallContext) -> dict[str, float]:
        """The optimizer steps on judged answers, of which the first are kept for people to read."""
        objective = self.objective
        objective.watch.begin(judged.answers, self.config.keep_rollouts)
        of_steps = train_minibatches(
            engine,
            self.trained(judged),
            objective,
            context,
            num_minibatches=self._num_minibatches,
            num_iterations=self._num_iterations,
        )
        aged = {"staleness": float(staleness(judged.answers, context, "actor"))} if self.config.async_steps else {}
        if not any(aged.values()):
            check_first_ratio(of_steps[0], exact=self.config.exact)
        difference = objective.watch.end(judged.answers, engine.model.mesh)
        context.keep_rollouts(self.records(judged, context, difference))
        return merged_metrics(of_steps) | self.metrics_of_answers(judged) | aged

    def metrics_of_answers(self, judged: JudgedT) -> dict[str, float]:
        """Metrics of the rewards and lengths of a step, under TRL's names; what keeps a policy from learning is
        mentioned."""
        of_rewards = reward_metrics(judged.rewards, self.shown_totals(judged), judged.groups, self._reward_names)
        of_completions = completion_metrics(judged.lengths, judged.answers["truncated"])
        zero_std_share = of_rewards["frac_reward_zero_std"]
        check_rewards(judged.rewards, self._reward_names, zero_std_share, in_groups=self._in_groups)
        check_completions(of_completions, self.config.sampling.max_new_tokens, self._limit_key)
        return {**of_rewards, **of_completions, "frac_trained": float(judged.is_trained.double().mean())}

    def shown_totals(self, judged: JudgedT) -> Tensor:
        """[S] float64: the rewards that metrics and records show; those that are trained with."""
        return judged.totals

    def prepare(self, batch: NamedArray) -> NamedArray:
        """The answers of a step that are trained on, a sample each, with what the loss reads."""
        return self.trained(self.judge(batch))

    def n_tokens(self, batch: NamedArray) -> list[int]:
        """Tokens of each answer with its prompt."""
        return self.objective.n_tokens(batch)

    def loss_weight(self, batch: NamedArray) -> float | Mapping[str, float]:
        """Weights of the terms of the loss."""
        return self.objective.loss_weight(batch)

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """Summed loss of each term."""
        return self.objective.loss(network, batch)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Metrics of the loss, under TRL's names."""
        return self.objective.metrics(totals)

    def planned_tokens(self, sample: NamedArray) -> list[int]:
        """The longest that each answer to a prompt can be, with the prompt."""
        return planned_tokens(sample, self.config)

    def planned_kv_tokens(self, batch_size: int) -> int:
        """The most tokens whose keys and values are held at once in generation."""
        return planned_kv_tokens(batch_size, self.config)

    def example(self, sample: NamedArray) -> Example:
        """A prompt whose answer is shown to people at each evaluation."""
        return Example(sample["prompt_ids"].tolist())
