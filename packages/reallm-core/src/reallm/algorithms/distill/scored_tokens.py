"""The tokens that teacher and student are compared on: those in the loss of a row, or those that the student sampled.

Shapes: T packed tokens.
"""

from __future__ import annotations

from torch import Tensor

from reallm.data.batching import cu_seqlens
from reallm.data.namedarray import NamedArray
from reallm.model.linear_cross_entropy import predicted
from reallm.training.sequence_scores import answer_mask, sum_answers


def scored_mask(batch: NamedArray) -> Tensor:
    """Mask [T] bool: `loss_mask`, or without it the answers by `prompt_lens`. Nothing predicts a first token."""
    mask = batch["loss_mask"] if "loss_mask" in batch else answer_mask(batch)
    return predicted(mask, cu_seqlens(batch, "input_ids"))


def scored_lengths(batch: NamedArray) -> list[tuple[int, ...]]:
    """Number of these tokens in each sequence of each sample."""
    lengths = cu_seqlens(batch, "input_ids").diff().long()
    counts = iter(sum_answers(scored_mask(batch).cpu().double(), lengths).long().tolist())
    return [tuple(next(counts) for _ in sample) for sample in batch.metadata["seqlens"]["input_ids"]]
