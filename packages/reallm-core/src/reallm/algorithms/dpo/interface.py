"""Interfaces of preference optimisation: the policy that is trained, and its reference."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from reallm.algorithms.answer_scores import answer_logprobs_field
from reallm.algorithms.context import CallContext
from reallm.algorithms.dpo.config import DPOConfig
from reallm.algorithms.dpo.pair_objective import PairObjective
from reallm.algorithms.dpo.single_answer_objective import SingleAnswerObjective
from reallm.algorithms.interface import Example
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.model.transformer import Transformer
from reallm.notices import notify_once
from reallm.training.engine import TrainEngine
from reallm.training.objective import LossOutput, Totals


class DPOInterface:
    """The policy: trained on preferences by the loss that the configuration chooses.

    Its forward passes and those of the reference have no dropout.
    """

    metric_names = (
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
        "nll_loss",
        "kl",
    )
    dropout = False

    def __init__(self, config: DPOConfig) -> None:
        self._config = config
        self._objective = SingleAnswerObjective(config) if config.is_unpaired else PairObjective(config)

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """`policy_logprobs` [S] float32: the log-probability of each answer before the step."""
        return answer_logprobs_field(model, batch, "policy_logprobs", context.max_tokens_per_microbatch)

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        """One optimizer step on `batch`."""
        metrics = engine.train_batch(batch, self)
        if context.step == 1 and self._config.needs_reference and "loss" in metrics:
            self._check_first_loss(metrics, batch, engine.model.dtype)
        return metrics

    def prepare(self, batch: NamedArray) -> NamedArray:
        """The batch in the units that it can be cut into; see the objectives."""
        return self._objective.prepare(batch)

    def n_tokens(self, batch: NamedArray) -> list[int]:
        """Tokens of each sample."""
        return self._objective.n_tokens(batch)

    def loss_weight(self, batch: NamedArray) -> float | Mapping[str, float]:
        """Weights of the terms of the loss."""
        return self._objective.loss_weight(batch)

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """Summed loss of each term."""
        return self._objective.loss(network, batch)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Metrics, under TRL's names."""
        return self._objective.metrics(totals)

    def example(self, sample: NamedArray) -> Example:
        """The prompt of a sample and its first answer, of a pair the chosen one; a bad answer is left out."""
        n_prompt, end = int(sample["prompt_lens"][0]), sample.metadata["seqlens"]["input_ids"][0][0]
        ids = sample["input_ids"][:end].tolist()
        is_bad = "labels" in sample and not sample["labels"][0]
        return Example(ids[:n_prompt], None if is_bad else ids[n_prompt:])

    def _check_first_loss(self, metrics: Mapping[str, float], batch: NamedArray, dtype: torch.dtype) -> None:
        """Say so if the first loss is not the one that follows from a policy that is its reference."""
        known = self._objective.loss_at_reference(self.prepare(batch))
        loss = metrics["loss"] - self._config.sft_weight * metrics.get("nll_loss", 0.0)
        tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 2e-2
        if abs(loss - known) <= tolerance * max(1.0, known):
            return
        actor, ref = self._config.actor.path, self._config.ref.path
        if actor != ref:
            why = f"ref.path={ref} is another checkpoint than actor.path={actor}"
        else:
            why = "they are the same checkpoint, so that a setting of actor.* or ref.* must differ, such as dtype"
        notify_once(
            f"the loss of the first step is {loss:.4f}, {loss - known:+.4f} from the {known:.4f} of a policy that is "
            f"its reference: {why}"
        )


class ReferenceInterface:
    """The reference, which scores answers and is never trained."""

    def __init__(self, config: DPOConfig) -> None:
        self._config = config

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """`ref_logprobs` [S] float32: the log-probability of each answer."""
        actor, ref = self._config.actor, self._config.ref
        if context.total_steps == 0 and (actor.path, actor.lora) == (ref.path, ref.lora):
            notify_once(
                "policy and reference are the same checkpoint, so that all rewards are 0; set ref.path to the one that "
                "training began with"
            )
        return answer_logprobs_field(model, batch, "ref_logprobs", context.max_tokens_per_microbatch)
