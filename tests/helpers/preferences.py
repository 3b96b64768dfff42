"""Batches of preferences, as the datasets of pairs and of labelled answers make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from reallm.algorithms.context import CallContext
from reallm.algorithms.dpo.interface import DPOInterface, ReferenceInterface
from reallm.config.args import ModelArgs
from reallm.data.batching import gather
from reallm.data.namedarray import NamedArray, merge
from reallm.engine.real_model import ReaLModel

Lengths = tuple[int, int]
"""Tokens of a sequence, and how many of them are the prompt's."""


@dataclass(frozen=True)
class Data:
    """Stands in for the configuration of a dataset."""

    train_path: str = "rows.jsonl"
    valid_path: str | None = None
    name: str = "rw_pair"


def sample(row: int, sequences: Sequence[Lengths], vocab_size: int, fields: Mapping[str, torch.Tensor]) -> NamedArray:
    """A sample of sequences of random tokens, with further fields of one number for each sequence or unit."""
    generator = torch.Generator().manual_seed(row)
    ids = torch.randint(0, vocab_size, (sum(n for n, _ in sequences),), generator=generator)
    prompt_lens = torch.tensor([n for _, n in sequences])
    seqlens = {
        "input_ids": [[n for n, _ in sequences]],
        "prompt_lens": [[1] * len(sequences)],
        **{name: [[1] * len(values)] for name, values in fields.items()},
    }
    array = NamedArray(input_ids=ids, prompt_lens=prompt_lens, **fields)
    return array.with_metadata(seqlens=seqlens, ids=[f"row-{row}"])


PAIRS: list[list[Lengths]] = [
    [(9, 4), (7, 4)],
    [(5, 2), (12, 2)],
    [(20, 8), (9, 8), (11, 8), (30, 8)],
    [(3, 1), (4, 1)],
    [(16, 3), (16, 3)],
]
"""Sequences of five prompts, of which the third has two pairs."""


def pairs(prompts: Sequence[Sequence[Lengths]] = PAIRS, vocab_size: int = 50) -> NamedArray:
    """What `rw_pair` gives: chosen and rejected answers in turn, and margins."""
    return gather(
        [
            sample(row, sequences, vocab_size, {"margins": torch.zeros(len(sequences) // 2) + 0.1 * row})
            for row, sequences in enumerate(prompts)
        ]
    )


def labelled_answers(labels: Sequence[bool] = (True, False, True, True, False), vocab_size: int = 50) -> NamedArray:
    """What `unpaired_preference` gives: a prompt with its answer and with that of another row, and the label."""
    return gather(
        [
            sample(row, [(6 + 3 * row, 3), (8 + row, 3)], vocab_size, {"labels": torch.tensor([label])})
            for row, label in enumerate(labels)
        ]
    )


def context(**changes: Any) -> CallContext:
    """The first step of a run."""
    settings = {"tokenizer": None, "seed": 1, "step": 1, "total_steps": 10, "max_tokens_per_microbatch": 64}
    return CallContext(**{**settings, **changes})


def scored(config: Any, batch: NamedArray, policy: ReaLModel, reference: ReaLModel) -> NamedArray:
    """The batch with all log-probabilities that a loss may read, as the graph computes them before the train call."""
    ref = ReferenceInterface(config).inference(reference, batch, context())
    return merge([batch, ref, DPOInterface(config).inference(policy, batch, context())])


ACTOR = ModelArgs(path="models/policy")
