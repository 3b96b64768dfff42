"""Pairs of a chosen and a rejected answer, as the units that a batch of preferences is cut into.

Shapes: P pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from reallm.data.batching import n_samples, split_groups
from reallm.data.namedarray import NamedArray

WEIGHTS = "weights"
"""Key of the weight of each pair."""


def split_pairs(batch: NamedArray, sequences: Mapping[str, int]) -> NamedArray:
    """A batch in which each pair is a sample, with the keys in `sequences` and `weights` [P] float64.

    The k pairs of a prompt weigh 1/k each, so that the weights of a batch sum to its number of prompts.

    Args:
        batch: samples of k pairs, the answers of a pair one after the other.
        sequences: number of sequences of each key in a pair, such as 2 of `input_ids` and 1 of `margins`.
    """
    pairs = split_groups(only(batch, sequences), sequences)
    groups = pairs.metadata["groups"]
    n_pairs: Counter[int] = Counter(groups)
    weights = torch.tensor([1 / n_pairs[group] for group in groups], dtype=torch.float64)
    return with_field(pairs, WEIGHTS, weights)


def only(batch: NamedArray, keys: Iterable[str]) -> NamedArray:
    """A batch with no other fields than these."""
    seqlens = {key: batch.metadata["seqlens"][key] for key in keys}
    return NamedArray(**{key: batch[key] for key in keys}).with_metadata(**{**batch.metadata, "seqlens": seqlens})


def with_field(batch: NamedArray, name: str, values: Tensor, each: int = 1) -> NamedArray:
    """A batch with one more field, of `each` numbers for each sample."""
    seqlens = {**batch.metadata["seqlens"], name: ((1,) * each,) * n_samples(batch)}
    return batch.with_fields(**{name: values}).with_metadata(seqlens=seqlens)


def chosen_and_rejected(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values [2P] of the answers of pairs as those of chosen [P] and of rejected ones [P]."""
    chosen, rejected = values.view(-1, 2).unbind(1)
    return chosen, rejected
