"""Which data-parallel rank takes which waiting requests: a pure function of what each of them is busy with.

Requests wait on no rank in particular. Whenever ranks have told each other what they have left to do, those that have
room take the next ones, so that a rank whose sequences end early gets more of them. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from reallm.generation.request import Request

MARGIN = 16
"""A rank has at least one sequence waiting for each so many that it has, to replace those that end soon."""


class Load(NamedTuple):
    """What a rank is busy with, and the room that it has left."""

    n_sequences: int
    """Number of sequences, running or waiting."""
    n_waiting: int
    """Number of those that wait."""
    n_free_sequences: int
    """Number of further ones that could run at the same time; negative if some wait for that."""
    n_free_tokens: int
    """Number of tokens that the cache has room for besides those of all its sequences; negative if some wait for it."""


@dataclass(frozen=True)
class Piece:
    """Samples of a waiting request that a rank takes."""

    index: int
    """Index of the request among those that wait."""
    first_sample: int
    n_samples: int
    rank: int


def hand_out(waiting: Collection[Request], loads: Sequence[Load]) -> list[Piece]:
    """Let ranks take waiting requests, in their order, as long as one of them has room.

    The rank with the fewest sequences comes first. If there are fewer requests than ranks, their samples are divided,
    and each rank that gets some computes the prompt.

    Args:
        waiting: the requests.
        loads: what each rank is busy with.

    Returns:
        The pieces by request, then by sample; all samples of each request that is taken.
    """
    ranks = [_Rank(number, *load) for number, load in enumerate(loads)]
    n_pieces = -(-len(ranks) // max(1, len(waiting)))
    taken: list[Piece] = []
    for index, request in enumerate(waiting):
        if not any(rank.has_room for rank in ranks):
            break
        first = 0
        for n_samples in _divide(request.config.n, n_pieces):
            rank = min(ranks, key=lambda each: (not each.has_room, each.n_sequences, each.number))
            rank.take(n_samples, len(request.prompt_ids))
            taken.append(Piece(index, first, n_samples, rank.number))
            first += n_samples
    return taken


@dataclass
class _Rank:
    """A rank while requests are handed out."""

    number: int
    n_sequences: int
    n_waiting: int
    n_free_sequences: int
    n_free_tokens: int

    @property
    def has_room(self) -> bool:
        has_enough = self.n_waiting * MARGIN > self.n_sequences
        return not has_enough or (self.n_free_sequences > 0 and self.n_free_tokens > 0)

    def take(self, n_samples: int, n_prompt_tokens: int) -> None:
        self.n_sequences += n_samples
        self.n_waiting += n_samples
        self.n_free_sequences -= n_samples
        self.n_free_tokens -= n_samples * n_prompt_tokens


def _divide(n: int, n_parts: int) -> list[int]:
    """Divide `n` into at most `n_parts` parts, none of them empty, as equal as possible."""
    n_parts = min(n, n_parts)
    return [n // n_parts + (part < n % n_parts) for part in range(n_parts)]
