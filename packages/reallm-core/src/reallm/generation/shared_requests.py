"""`SharedRequests`: requests that data-parallel ranks share, as each of them keeps track of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from typing import Any

from reallm.generation.balance import Load, Piece, hand_out
from reallm.generation.event_json import event_from_json, event_to_json
from reallm.generation.request import Event, FinishedEvent, Request


class SharedRequests:
    """Requests by number; the same on all ranks, apart from the numbers that a rank's engine has for those it took.

    Args:
        rank: this rank's data-parallel coordinate.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._n_requests = 0
        self._unfinished: dict[int, _Unfinished] = {}
        self._waiting: dict[int, Request] = {}
        self._numbers: dict[int, int] = {}

    def __len__(self) -> int:
        """Number of requests that are not known to be finished."""
        return len(self._unfinished)

    def add(self, request: Request) -> int:
        """Let a request wait; returns its number."""
        number, self._n_requests = self._n_requests, self._n_requests + 1
        self._unfinished[number] = _Unfinished(request, request.config.n)
        self._waiting[number] = request
        return number

    def stop_waiting(self, number: int) -> Request | None:
        """Let a request wait no longer; returns it if it did and this is the rank that tells how it ends."""
        request = self._waiting.pop(number, None)
        return request if self._rank == 0 else None

    def hand_out(self, loads: Sequence[Load]) -> list[tuple[int, Request]]:
        """Let ranks take requests that wait; returns those of this rank, or parts of their samples, with numbers."""
        pieces = hand_out(self._waiting.values(), loads)
        numbers = [*islice(self._waiting, pieces[-1].index + 1)] if pieces else []
        requests = [self._waiting.pop(number) for number in numbers]
        return [
            (numbers[piece.index], _samples_of(requests[piece.index], piece))
            for piece in pieces
            if piece.rank == self._rank
        ]

    def taken(self, number: int, local_number: int) -> None:
        """Note the number that this rank's engine has given to a request or a part of its samples."""
        self._numbers[local_number] = number
        self._unfinished[number].local_numbers.append(local_number)

    def local_numbers(self, number: int) -> Sequence[int]:
        """The numbers in this rank's engine of an unfinished request."""
        return self._unfinished[number].local_numbers if number in self._unfinished else ()

    def to_json(self, local_event: Event) -> dict[str, Any]:
        """A JSON value of an event of this rank's engine, for all ranks."""
        return event_to_json(replace(local_event, request_id=self._numbers[local_event.request_id]))

    def from_json(self, by_rank: Sequence[Sequence[Sequence[dict[str, Any]]]]) -> Iterator[Event]:
        """The events of all ranks, by step and rank, given by rank and step; forgets requests that are finished."""
        for of_step in zip_longest(*by_rank, fillvalue=()):
            for value in (value for of_rank in of_step for value in of_rank):
                unfinished = self._unfinished[value["request_id"]]
                event = event_from_json(value, unfinished.request.prompt_ids)
                unfinished.n_samples -= isinstance(event, FinishedEvent)
                if not unfinished.n_samples:
                    self._forget(event.request_id)
                yield event

    def clear(self) -> None:
        """Forget all requests."""
        for number in [*self._unfinished]:
            self._forget(number)
        self._waiting.clear()

    def _forget(self, number: int) -> None:
        for local_number in self._unfinished.pop(number).local_numbers:
            del self._numbers[local_number]


@dataclass
class _Unfinished:
    """A request of which not all ranks know yet how it ends."""

    request: Request
    n_samples: int
    """Number of samples whose end is not known."""
    local_numbers: list[int] = field(default_factory=list)
    """Numbers in this rank's engine."""


def _samples_of(request: Request, piece: Piece) -> Request:
    """The part of a request that a rank takes."""
    config = replace(
        request.config, n=piece.n_samples, temperature=request.config.effective_temperature
    )  # the default of the temperature depends on `n`
    return replace(request, config=config, first_sample=request.first_sample + piece.first_sample)
