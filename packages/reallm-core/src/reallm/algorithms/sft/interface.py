"""Supervised fine-tuning: the mean negative log-likelihood of the answers' tokens.

Shapes: T packed tokens, N tokens in the loss.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reallm.algorithms.context import CallContext
from reallm.algorithms.interface import Example
from reallm.algorithms.sft.config import SFTConfig
from reallm.data.array import describe
from reallm.data.batching import cu_seqlens, lengths
from reallm.data.namedarray import NamedArray
from reallm.errors import DataError
from reallm.model.linear_cross_entropy import next_token_targets
from reallm.model.transformer import Transformer
from reallm.training.engine import TrainEngine
from reallm.training.objective import LossOutput, Totals
from reallm.training.sequence_scores import hidden_states


class SFTInterface:
    """Reads `input_ids` [T] int64 and `loss_mask` [T] bool, True for the tokens in the loss.

    Each of these tokens has the same weight, whichever sequence or micro-batch it is in.
    """

    metric_names = ("loss", "perplexity", "accuracy", "loss_tokens")
    weighs_tokens = True

    def __init__(self, config: SFTConfig | None = None) -> None:
        """No setting of the configuration changes the loss."""

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        """One optimizer step on `batch`."""
        return engine.train_batch(batch, self)

    def n_tokens(self, batch: NamedArray) -> list[int]:
        """Tokens of each sample."""
        return lengths(batch, "input_ids")

    def loss_weight(self, batch: NamedArray) -> int:
        """Number of tokens in the loss."""
        positions, _ = _targets(batch)
        return positions.numel()

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """Summed negative log-likelihood in nats, and the number of tokens that were the most likely ones.

        Raises:
            DataError: a token is not in the model's vocabulary, or a field has another dtype.
        """
        positions, targets = _targets(batch)
        hidden = hidden_states(network, batch)
        result = network.cross_entropy(hidden[positions], targets)
        return LossOutput(result.loss_sum, {"correct": result.correct.sum()})

    def example(self, sample: NamedArray) -> Example | None:
        """The last run of tokens in the loss, such as the last turn of a conversation, and all tokens before it.

        A sample that is in the loss from its beginning is split in its middle. None if no tokens come before.
        """
        ids, mask = sample["input_ids"].tolist(), sample["loss_mask"].tolist()
        if True not in mask:
            return None
        end = len(mask) - mask[::-1].index(True)
        start = next((i + 1 for i in range(end - 1, -1, -1) if not mask[i]), 0)
        start = start if start > 1 else end // 2
        return Example(ids[:start], ids[start:end]) if start else None

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Mean loss in nats per token, perplexity, accuracy of the most likely token, and number of tokens."""
        if not totals.loss_weight:
            return {"loss_tokens": 0.0}
        loss = totals.loss_sum / totals.loss_weight
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),  # e^710 overflows a float
            "accuracy": totals.stats["correct"] / totals.loss_weight,
            "loss_tokens": totals.loss_weight,
        }


def _targets(batch: NamedArray) -> tuple[Tensor, Tensor]:
    """Positions [N] whose next token is in the loss, and those tokens [N]."""
    tokens, mask = batch["input_ids"], batch["loss_mask"]
    if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
        raise DataError(f"field 'input_ids' is {describe(tokens)}; it must be a tensor of int64")
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise DataError(f"field 'loss_mask' is {describe(mask)}; it must be a tensor of bool")
    return next_token_targets(tokens, cu_seqlens(batch, "input_ids").to(tokens.device), mask)
