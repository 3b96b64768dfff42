"""Interface of the student of `reallm distill`, and its loss.

Shapes: N tokens of answers, K tokens of the vocabulary.
"""

from __future__ import annotations

from reallm.algorithms.context import CallContext
from reallm.algorithms.distill.config import DistillConfig
from reallm.algorithms.distill.divergence import divergence, with_rest
from reallm.algorithms.distill.graph import LOG_RATIOS, TOP
from reallm.algorithms.distill.scored_tokens import scored_mask
from reallm.algorithms.interface import Example
from reallm.algorithms.rl.generation import planned_kv_tokens, planned_tokens, sample_answers
from reallm.algorithms.rl.keys import rollout_keys
from reallm.algorithms.rl.rollout import staleness
from reallm.algorithms.sft.interface import SFTInterface
from reallm.data.batching import cu_seqlens, lengths, split_groups
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.model.linear_cross_entropy import next_token_targets
from reallm.model.transformer import Transformer
from reallm.training.engine import TrainEngine
from reallm.training.objective import LossOutput, Totals
from reallm.training.sequence_scores import hidden_states


class DistillInterface:
    """The student: its distribution of each token of an answer is brought nearer to the teacher's.

    The loss is the mean over tokens of the divergence and, with its weight, of the cross-entropy. Forward passes have
    no dropout.
    """

    metric_names = ("loss", "divergence", "cross_entropy", "top_k_mass", "kl", "loss_tokens")
    weighs_tokens = True
    dropout = False

    def __init__(self, config: DistillConfig) -> None:
        self._config = config

    def generate(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        """Sampled answers, with the keys of `rollout_keys`."""
        return sample_answers(model, batch, context, self._config)

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        """One optimizer step on `batch`."""
        aged = {"staleness": float(staleness(batch, context, "actor"))} if self._config.async_steps else {}
        return engine.train_batch(batch, self) | aged

    def prepare(self, batch: NamedArray) -> NamedArray:
        """The batch with each answer as a sample of its own."""
        if not self._config.on_policy:
            return batch
        return split_groups(batch, dict.fromkeys((*rollout_keys(self._config), *TOP, LOG_RATIOS), 1))

    def n_tokens(self, batch: NamedArray) -> list[int]:
        """Tokens of each sample."""
        return lengths(batch, "input_ids")

    def loss_weight(self, batch: NamedArray) -> int:
        """Number of tokens in the loss."""
        return int(scored_mask(batch).sum())

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """Summed loss of the tokens.

        Raises:
            DataError: a token is not in the model's vocabulary, or a field is malformed.
        """
        config = self._config
        positions, targets = next_token_targets(batch["input_ids"], cu_seqlens(batch, "input_ids"), scored_mask(batch))
        hidden = hidden_states(network, batch)[positions]
        tokens, logprobs, rest = (batch[key] for key in TOP)
        student = network.logprobs_and_rest(hidden, tokens.long(), config.temperature)
        loss = divergence(student, with_rest(logprobs, rest), config.divergence_beta).sum()
        stats = {"divergence": loss.detach(), "mass": logprobs.exp().sum()}
        if config.cross_entropy_weight:
            nll = network.cross_entropy(hidden, targets).loss_sum
            loss = loss + config.cross_entropy_weight * nll
            stats["cross_entropy"] = nll.detach()
        if LOG_RATIOS in batch:
            stats["kl"] = batch[LOG_RATIOS].sum()
        return LossOutput(loss, stats)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Means over tokens: of the loss and its parts in nats, of the teacher's probability of its top tokens, and of
        the student's own tokens the `kl`, an estimate of KL(student || teacher) at the temperature of sampling."""
        if not (n := totals.loss_weight):
            return {"loss_tokens": 0.0}
        stats = {name: value / n for name, value in totals.stats.items()}
        stats["top_k_mass"] = stats.pop("mass")
        return {"loss": totals.loss_sum / n, **stats, "loss_tokens": n}

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
