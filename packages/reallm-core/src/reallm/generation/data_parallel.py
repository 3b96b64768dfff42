"""`DataParallelEngine`: an engine on each data-parallel rank, and requests that the ranks share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from typing import Any, Self

from reallm.generation.balance import Load, Piece, hand_out
from reallm.generation.call_log import CallLog
from reallm.generation.engine import GenerationEngine
from reallm.generation.event_json import event_from_json, event_to_json
from reallm.generation.request import Completion, Event, FinishedEvent, Request
from reallm.model.transformer import Transformer
from reallm.parallel.fsdp import unsharded
from reallm.parallel.mesh import Mesh
from reallm.parallel.object_collectives import all_gather_json, describe_error, raise_first_error

STEPS_BETWEEN_EXCHANGES = 8
"""Number of steps after which ranks tell each other what has happened."""


def make_engine(network: Transformer, *, mesh: Mesh | None = None, **options: Any) -> Engine:
    """An engine for a network on one process or on all ranks of a layout; see `GenerationEngine` for the options."""
    engine = GenerationEngine(network, mesh=mesh, **options)
    return engine if mesh is None or mesh.layout.dp == 1 else DataParallelEngine(engine, network, mesh)


class DataParallelEngine:
    """Like `GenerationEngine`, on all ranks of a layout with data parallelism.

    All ranks make the same calls and get the same events, those of other ranks every 8 steps. Each request is computed
    by one rank, or a part of its samples by each of some; which ones it is makes no difference to its tokens, up to
    numerics.

    Args:
        engine: this rank's engine.
        network: its network.
        mesh: the layout.
    """

    def __init__(self, engine: GenerationEngine, network: Transformer, mesh: Mesh) -> None:
        self._engine, self._network, self._mesh = engine, network, mesh
        self._rank = mesh.coordinate.dp
        self._calls = CallLog()
        self._n_requests = self._n_steps = 0
        self._unfinished: dict[int, _Unfinished] = {}  # number of a request -> the request, until all ranks have it
        self._waiting: dict[int, Request] = {}  # those that no rank has taken
        self._numbers: dict[int, int] = {}  # number of a request in this rank's engine -> its number
        self._events: list[list[Event]] = []  # of this rank, for each step since the last exchange
        self._error: Exception | None = None
        self._gathering: ExitStack | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def has_work(self) -> bool:
        """Whether a step has something to do or to tell; the same on all ranks."""
        return bool(self._unfinished)

    @property
    def longest_sequence(self) -> int:
        """Most tokens of a prompt and its completion that the cache of any rank has room for."""
        return self._engine.longest_sequence

    def add(self, request: Request, *, name: str = "the prompt") -> int:
        """Let a request wait; see `GenerationEngine.add`."""
        self._engine.check(request, name)
        self._calls.note(request)
        number, self._n_requests = self._n_requests, self._n_requests + 1
        self._unfinished[number] = _Unfinished(request, request.config.n)
        self._waiting[number] = request
        return number

    def cancel(self, request_id: int) -> None:
        """End the samples of a request that have not ended; see `GenerationEngine.cancel`."""
        self._calls.note(request_id)
        request = self._waiting.pop(request_id, None)
        if request is not None and self._rank == 0:  # one rank tells that it has ended
            self._take(request_id, request)
        if request_id in self._unfinished:
            for number in self._unfinished[request_id].numbers:
                self._engine.cancel(number)

    def step(self) -> list[Event]:
        """Compute one step on each rank; every 8 steps returns what has happened since, on all of them.

        Raises:
            ReallmError: on all ranks, the error of the first rank on which a step has failed since the last exchange.
            DataError: ranks have made different calls.
        """
        return self._step(tell_tokens=True)

    def run(self) -> list[Completion]:
        """Step until nothing is left to do; returns the completions by request, then by sample."""
        finished = []
        while self.has_work:
            finished += [event for event in self._step(tell_tokens=False) if isinstance(event, FinishedEvent)]
        return [event.completion for event in sorted(finished, key=lambda event: (event.request_id, event.sample))]

    def close(self) -> None:
        """End all samples that have not ended, without events, and free the memory of the cache."""
        self._unfinished.clear()
        self._waiting.clear()
        self._numbers.clear()
        self._events.clear()
        self._engine.close()
        self._shard_again()

    # ------------------------------------------------------------------ private helpers

    def _step(self, *, tell_tokens: bool) -> list[Event]:
        events: list[Event] = []
        if self.has_work and self._n_steps % STEPS_BETWEEN_EXCHANGES == 0:
            events = self._exchange()
        if not self.has_work:
            self._n_steps = 0
            self._shard_again()
            return events
        self._n_steps += 1
        if self._gathering is None:
            self._gathering = ExitStack()
            self._gathering.enter_context(unsharded(self._network))
        with unsharded(self._network):  # gathers again what a training step between two steps has sharded
            self._compute(tell_tokens)
        return events

    def _shard_again(self) -> None:
        """Free the parameters that FSDP has gathered for the time in which there is work."""
        if self._gathering is not None:
            self._gathering.close()
            self._gathering = None

    def _compute(self, tell_tokens: bool) -> None:
        """Compute a step of this rank, unless one has failed; the next exchange tells."""
        if self._error is not None or not self._engine.has_work:
            return
        try:
            events = self._engine.step()
        except Exception as error:  # whatever the error, the other ranks wait in the exchange
            self._error = error
            return
        self._events.append(
            [self._renumbered(event) for event in events if tell_tokens or isinstance(event, FinishedEvent)]
        )

    def _exchange(self) -> list[Event]:
        """Tell the other ranks what has happened, and take requests; returns the events of all ranks."""
        message = {
            "calls": self._calls.digest,
            "error": None if self._error is None else describe_error(self._error, self._mesh.rank),
            "load": self._engine.load,
            "events": [[event_to_json(event) for event in events] for events in self._events],
        }
        local_error, self._error, self._events = self._error, None, []
        by_rank = all_gather_json(message, self._mesh.dp)
        raise_first_error([each["error"] for each in by_rank.values()], local_error)
        self._calls.compare({rank: each["calls"] for rank, each in by_rank.items()})
        messages = [by_rank[rank] for rank in self._mesh.layout.dp_ranks(self._mesh.coordinate)]
        events = [*self._in_order([each["events"] for each in messages])]
        self._hand_out([Load(*each["load"]) for each in messages])
        return events

    def _hand_out(self, loads: Sequence[Load]) -> None:
        """Let ranks take the requests that wait."""
        pieces = hand_out(self._waiting.values(), loads)
        numbers = [*islice(self._waiting, pieces[-1].index + 1)] if pieces else []
        for piece in pieces:
            if piece.rank == self._rank:
                self._take(numbers[piece.index], _samples_of(self._waiting[numbers[piece.index]], piece))
        for number in numbers:
            del self._waiting[number]

    def _take(self, number: int, request: Request) -> None:
        """Let this rank's engine have a request, or a part of its samples."""
        own_number = self._engine.add(request)
        self._numbers[own_number] = number
        self._unfinished[number].numbers.append(own_number)

    def _renumbered(self, event: Event) -> Event:
        return replace(event, request_id=self._numbers[event.request_id])

    def _in_order(self, by_rank: Sequence[Sequence[Sequence[dict[str, Any]]]]) -> Iterator[Event]:
        """The events of all ranks, given by rank and step, by step and rank; forgets requests that are finished."""
        for values_of_step in zip_longest(*by_rank, fillvalue=()):
            for values in values_of_step:
                for value in values:
                    number = value["request_id"]
                    unfinished = self._unfinished[number]
                    event = event_from_json(value, unfinished.request.prompt_ids)
                    if isinstance(event, FinishedEvent):
                        unfinished.n_samples -= 1
                        if not unfinished.n_samples:
                            self._forget(number)
                    yield event

    def _forget(self, number: int) -> None:
        for own_number in self._unfinished.pop(number).numbers:
            del self._numbers[own_number]


Engine = GenerationEngine | DataParallelEngine


@dataclass
class _Unfinished:
    """A request of which not all ranks know yet how it ends."""

    request: Request
    n_samples: int
    """Number of samples whose end is not known."""
    numbers: list[int] = field(default_factory=list)
    """Numbers in this rank's engine."""


def _samples_of(request: Request, piece: Piece) -> Request:
    """The part of a request that a rank takes."""
    config = replace(request.config, n=piece.n_samples)
    return replace(request, config=config, first_sample=request.first_sample + piece.first_sample)
