"""The loss of distillation: how far the distributions of student and teacher are apart.

Shapes: N tokens of answers, K tokens of the vocabulary.
"""

from __future__ import annotations

from reallm.algorithms.distill.config import DistillConfig
from reallm.algorithms.distill.divergence import divergence, with_rest
from reallm.algorithms.distill.graph import LOG_RATIOS, TOP
from reallm.algorithms.distill.scored_tokens import scored_mask
from reallm.data.batching import cu_seqlens, lengths
from reallm.data.namedarray import NamedArray
from reallm.model.linear_cross_entropy import next_token_targets
from reallm.model.transformer import Transformer
from reallm.training.objective import LossOutput, Totals
from reallm.training.sequence_scores import hidden_states


class DivergenceObjective:
    """The mean over tokens of the divergence and, with its weight, of the cross-entropy.

    Forward passes have no dropout.
    """

    metric_names = ("loss", "divergence", "cross_entropy", "top_k_mass", "kl", "loss_tokens")
    dropout = False

    def __init__(self, config: DistillConfig) -> None:
        self._config = config

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
