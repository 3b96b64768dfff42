"""Reward modelling: the negative log-likelihood of preferences under the Bradley-Terry model.

Shapes: P pairs.
"""

from __future__ import annotations

from torch import Tensor

from reallm.algorithms.context import CallContext
from reallm.algorithms.losses import reward_model_loss
from reallm.algorithms.pairs import WEIGHTS, chosen_and_rejected, split_pairs
from reallm.algorithms.rw.config import RWConfig
from reallm.data.batching import lengths
from reallm.data.namedarray import NamedArray
from reallm.model.transformer import Transformer
from reallm.training.engine import TrainEngine
from reallm.training.objective import LossOutput, Totals
from reallm.training.sequence_scores import last_token_scores


class RWInterface:
    """Reads `input_ids` [T] int64, with k pairs in a sample, better and worse answers in turn, and `margins` [P].

    The score of an answer is that of its last token. A prompt with k pairs has the weight of one: each pair counts 1/k.
    """

    metric_names = ("loss", "accuracy", "margin", "rewards/chosen", "rewards/rejected")

    def __init__(self, config: RWConfig) -> None:
        self._center_coef = config.center_coef

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        """One optimizer step on `batch`."""
        return engine.train_batch(batch, self)

    def prepare(self, batch: NamedArray) -> NamedArray:
        """The batch with each pair as a sample of its own."""
        return split_pairs(batch, {"input_ids": 2, "margins": 1})

    def n_tokens(self, batch: NamedArray) -> list[int]:
        """Tokens of each sample."""
        return lengths(batch, "input_ids")

    def loss_weight(self, batch: NamedArray) -> float:
        """Number of prompts."""
        return float(batch[WEIGHTS].sum())

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """Summed loss of the pairs, each times its weight.

        Raises:
            DataError: a token is not in the model's vocabulary, or a field is malformed.
        """
        chosen, rejected = chosen_and_rejected(last_token_scores(network, batch).float())
        weights = batch[WEIGHTS]

        def total(values: Tensor) -> Tensor:
            return (weights * values).sum()

        losses = reward_model_loss(chosen, rejected, batch["margins"], self._center_coef)
        stats = {
            "accuracy": chosen > rejected,
            "margin": chosen - rejected,
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
        }
        return LossOutput(total(losses), {name: total(value.detach()) for name, value in stats.items()})

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Means over prompts: the loss in nats, the share of pairs whose better answer has the higher score, how much
        higher it is, and the scores."""
        if not totals.loss_weight:
            return {}
        return {"loss": totals.loss, **{name: value / totals.loss_weight for name, value in totals.stats.items()}}
