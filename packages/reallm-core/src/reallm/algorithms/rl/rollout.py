"""Rollouts: prompts with the answers that a policy has sampled, as a batch.

Shapes: S sequences, N tokens of answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch

from reallm.algorithms.call_outputs import WEIGHTS_VERSIONS
from reallm.algorithms.context import CallContext
from reallm.algorithms.rl.keys import KEPT_MASS
from reallm.data.batching import cu_seqlens
from reallm.data.namedarray import NamedArray
from reallm.generation.request import Completion


def pack(completions: Sequence[Completion], n: int) -> NamedArray:
    """A batch of rollouts with the keys of `ROLLOUT`, and `kept_mass` if the completions have it.

    Args:
        completions: the completions of each prompt in turn.
        n: number of completions of a prompt, which are one sample.
    """
    ids = [[*one.prompt_ids, *one.token_ids] for one in completions]
    fields = {
        "input_ids": torch.tensor(list(itertools.chain(*ids)), dtype=torch.int64),
        "prompt_lens": torch.tensor([len(one.prompt_ids) for one in completions], dtype=torch.int64),
        "logprobs": _floats(one.logprobs for one in completions),
        "truncated": torch.tensor([one.finish_reason == "length" for one in completions], dtype=torch.bool),
    }
    answers = [len(one.token_ids) for one in completions]
    sizes = {
        "input_ids": [len(one) for one in ids],
        "prompt_lens": [1] * len(ids),
        "logprobs": answers,
        "truncated": [1] * len(ids),
    }
    masses = [one.kept_mass for one in completions if one.kept_mass is not None]
    if masses and len(masses) == len(completions):
        fields[KEPT_MASS], sizes[KEPT_MASS] = _floats(masses), answers
    seqlens = {key: _batched(n_each, n) for key, n_each in sizes.items()}
    return NamedArray(**fields).with_metadata(seqlens=seqlens)


def sequences(batch: NamedArray, key: str) -> list[torch.Tensor]:
    """The sequences of a field, one after another."""
    bounds = cu_seqlens(batch, key).tolist()
    return [batch[key][start:end] for start, end in itertools.pairwise(bounds)]


def with_prefix(batch: NamedArray, prefix: str) -> NamedArray:
    """The same fields under names that begin with `prefix`."""
    seqlens = {f"{prefix}{key}": lengths for key, lengths in batch.metadata["seqlens"].items()}
    return NamedArray(**{f"{prefix}{key}": value for key, value in batch.items()}).with_metadata(seqlens=seqlens)


def without_prefix(batch: NamedArray, prefix: str) -> NamedArray:
    """The fields whose names begin with `prefix`, under the rest of their names, with all metadata of samples."""
    seqlens = {
        key.removeprefix(prefix): lengths
        for key, lengths in batch.metadata["seqlens"].items()
        if key.startswith(prefix)
    }
    fields = {key.removeprefix(prefix): value for key, value in batch.items() if key.startswith(prefix)}
    return NamedArray(**fields).with_metadata(**{**batch.metadata, "seqlens": seqlens})


def sampled_logprobs(batch: NamedArray) -> torch.Tensor:
    """Log-probabilities [N] of the answers' tokens under the distribution that they were drawn from."""
    logprobs: torch.Tensor = batch["logprobs"]
    return logprobs - batch[KEPT_MASS].log() if KEPT_MASS in batch else logprobs


def staleness(batch: NamedArray, context: CallContext, role: str) -> int:
    """The age of a batch of rollouts: the updates that the weights of a role have had since it sampled them."""
    made_with: int = batch.metadata[WEIGHTS_VERSIONS][role]
    return context.weights_versions[role] - made_with


def _batched(values: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(values[i : i + n]) for i in range(0, len(values), n)]


def _floats(values: Iterable[Sequence[float]]) -> torch.Tensor:
    return torch.tensor(list(itertools.chain(*values)), dtype=torch.float32)
