"""`TokenWatch`: what the loss sees of the tokens of a few answers, wherever in the layout it is computed.

Shapes: N tokens of answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from reallm.data.batching import cu_seqlens
from reallm.data.namedarray import NamedArray
from reallm.parallel.mesh import Mesh
from reallm.parallel.object_collectives import all_gather_json

Key = tuple[int, ...]
"""An answer with its prompt, as token ids: equal ones have equal log-probabilities."""


class TokenWatch:
    """Keeps a number of each token of some answers, the first that the loss computes in a step."""

    def __init__(self) -> None:
        self._wanted: set[Key] = set()
        self._seen: dict[Key, list[float]] = {}

    def begin(self, answers: NamedArray, n_prompts: int | None) -> None:
        """Watch the answers to the first prompts of a step; None: to all. Answers are samples, with `groups`."""
        groups = list(answers.metadata["groups"])
        kept = set(list(dict.fromkeys(groups))[:n_prompts])
        self._wanted = {key for key, group in zip(_keys(answers), groups, strict=True) if group in kept}
        self._seen = {}

    def note(self, batch: NamedArray, values: Tensor) -> None:
        """Keep the numbers [N] of the answers of a micro-batch that are watched."""
        if len(self._seen) == len(self._wanted):
            return
        bounds = itertools.pairwise(cu_seqlens(batch, "logprobs").tolist())
        for key, (start, end) in zip(_keys(batch), bounds, strict=True):
            if key in self._wanted and key not in self._seen:
                self._seen[key] = values[start:end].detach().tolist()

    def end(self, answers: NamedArray, mesh: Mesh | None) -> Tensor:
        """The numbers of the tokens of answers [N] float64, from all ranks of a layout; NaN where there are none."""
        seen = [self._seen]
        if mesh is not None and self._wanted:
            items = [[list(key), values] for key, values in self._seen.items()]
            of_ranks = all_gather_json(items, mesh.all).values()
            seen = [{tuple(key): values for key, values in of_rank} for of_rank in of_ranks]
        found = {key: values for each in reversed(seen) for key, values in each.items()}
        self._wanted, self._seen = set(), {}
        numbers = torch.full((len(answers["logprobs"]),), torch.nan, dtype=torch.float64)
        for key, (start, end) in zip(
            _keys(answers), itertools.pairwise(cu_seqlens(answers, "logprobs").tolist()), strict=True
        ):
            if key in found:
                numbers[start:end] = torch.tensor(found[key], dtype=torch.float64)
        return numbers


def _keys(answers: NamedArray) -> Iterator[Key]:
    ids = answers["input_ids"].tolist()
    for start, end in itertools.pairwise(cu_seqlens(answers, "input_ids").tolist()):
        yield tuple(ids[start:end])
