"""Interface of the student of `reallm distill`.

Shapes: N tokens of answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reallm.algorithms.context import CallContext
from reallm.algorithms.distill.config import DistillConfig
from reallm.algorithms.distill.divergence_objective import DivergenceObjective
from reallm.algorithms.distill.graph import LOG_RATIOS, TOP
from reallm.algorithms.distill.policy_gradient import policy_objective, rewarded_tokens
from reallm.algorithms.interface import Example
from reallm.algorithms.rl.generation import planned_kv_tokens, planned_tokens, sample_answers
from reallm.algorithms.rl.keys import ROLLOUT, rollout_keys
from reallm.algorithms.rl.policy_objective import PolicyObjective
from reallm.algorithms.rl.rollout import staleness
from reallm.algorithms.rl.rollout_record import rollout_records
from reallm.algorithms.sft.interface import SFTInterface
from reallm.data.batching import lengths, split_groups
from reallm.data.namedarray import NamedArray, split
from reallm.engine.real_model import ReaLModel
from reallm.model.transformer import Transformer
from reallm.training.engine import TrainEngine
from reallm.training.objective import LossOutput, Totals


class DistillInterface:
    """The student: its distribution of each token of an answer is brought nearer to the teacher's.

    Forward passes have no dropout.
    """

    metric_names = DivergenceObjective.metric_names
    call_metric_names = (*PolicyObjective.metric_names, "staleness")
    weighs_tokens = True
    dropout = False

    def __init__(self, config: DistillConfig) -> None:
        self._config = config
        self._objective: DivergenceObjective | PolicyObjective = (
            policy_objective(config) if config.policy_gradient else DivergenceObjective(config)
        )

    def generate(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """Sampled answers, with the keys of `rollout_keys`."""
        return sample_answers(model, batch, context, self._config)

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        """One optimizer step on `batch`; the first of the student's own answers are kept for people to read."""
        metrics = engine.train_batch(batch, self)
        if not self._config.on_policy:
            return metrics
        context.keep_rollouts(self._records(batch, context))
        if self._config.policy_gradient and len(ratios := batch[LOG_RATIOS]):
            metrics["kl"] = float(ratios.double().mean())
        if self._config.async_steps:
            metrics["staleness"] = float(staleness(batch, context, "actor"))
        return metrics

    def prepare(self, batch: NamedArray) -> NamedArray:
        """The batch with each answer as a sample of its own, and what the loss reads."""
        if self._config.policy_gradient:
            return rewarded_tokens(batch, self._config)
        if not self._config.on_policy:
            return batch
        return split_groups(batch, dict.fromkeys((*rollout_keys(self._config), *TOP, LOG_RATIOS), 1))

    def n_tokens(self, batch: NamedArray) -> list[int]:
        """Tokens of each sample."""
        return self._objective.n_tokens(batch)

    def loss_weight(self, batch: NamedArray) -> float | Mapping[str, float]:
        """Number of tokens in the loss."""
        return self._objective.loss_weight(batch)

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """Summed loss of the tokens.

        Raises:
            DataError: a token is not in the model's vocabulary, or a field is malformed.
        """
        return self._objective.loss(network, batch)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Metrics of the loss."""
        return self._objective.metrics(totals)

    def planned_tokens(self, sample: NamedArray) -> list[int]:
        """The longest that answers to a prompt can be, with the prompt; a row is as long as it is."""
        return planned_tokens(sample, self._config) if self._config.on_policy else lengths(sample, "input_ids")

    def planned_kv_tokens(self, batch_size: int) -> int:
        """The most tokens whose keys and values are held at once in generation."""
        return planned_kv_tokens(batch_size, self._config)

    def example(self, sample: NamedArray) -> Example | None:
        """A prompt whose answer is shown to people at each evaluation, with the row's own answer if it has one."""
        if self._config.on_policy:
            return Example(sample["prompt_ids"].tolist())
        return SFTInterface().example(sample)

    def _records(self, batch: NamedArray, context: CallContext) -> list[dict[str, Any]]:
        """Records of the first prompts of a step; the KL divergence of a token is estimated by its log-ratio."""
        read = split(batch, [[*ROLLOUT, LOG_RATIOS]])[0]
        answers = split_groups(read, dict.fromkeys(read, 1))
        ratios = answers[LOG_RATIOS]
        advantages = -ratios if self._config.policy_gradient else None
        return rollout_records(answers, context, self._config.keep_rollouts, advantages=advantages, kl=ratios)
