"""`DataParallelEngine`: the engine of a data-parallel rank, which shares its requests with the others."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from reallm.generation.balance import Load
from reallm.generation.call_log import CallLog
from reallm.generation.engine import GenerationEngine
from reallm.generation.request import Completion, Event, FinishedEvent, Request
from reallm.generation.shared_requests import SharedRequests
from reallm.model.transformer import Transformer
from reallm.parallel.fsdp import is_sharded, unsharded
from reallm.parallel.mesh import Mesh
from reallm.parallel.object_collectives import all_gather_json, describe_error, raise_first_error

STEPS_BETWEEN_EXCHANGES = 8
"""Number of steps after which ranks tell each other what has happened."""


def make_engine(network: Transformer, *, mesh: Mesh | None = None, **options: Any) -> GenerationEngine:
    """An engine for a network on one process or on all ranks of a layout; see `GenerationEngine` for the options."""
    if mesh is None or mesh.layout.dp == 1:
        return GenerationEngine(network, mesh=mesh, **options)
    return DataParallelEngine(network, mesh=mesh, **options)


class DataParallelEngine(GenerationEngine):
    """A `GenerationEngine` on each rank of a layout with data parallelism.

    All ranks make the same calls and get the same events, every 8 steps. Each request is computed by one rank, or a
    part of its samples by each of some; which ones makes no difference to its tokens, up to numerics.
    """

    def __init__(self, network: Transformer, *, mesh: Mesh, **options: Any) -> None:
        super().__init__(network, mesh=mesh, **options)
        self._mesh = mesh
        self._shared = SharedRequests(mesh.coordinate.dp)
        self._calls = CallLog()
        self._n_steps = 0
        self._untold: list[list[Any]] = []
        """Events of this rank as JSON values, for each step since the last exchange."""
        self._error: Exception | None = None
        """Why a step has failed since then."""
        self._told: list[Event] = []
        """Events of all ranks that no step has returned yet."""
        self._tells_tokens = True
        self._has_new_weights = False
        self._gathered: ExitStack | None = None

    @property
    def has_work(self) -> bool:
        """Whether a step has something to compute or to tell; the same on all ranks."""
        return len(self._shared) > 0 or bool(self._told)

    def add(self, request: Request, *, name: str = "the prompt") -> int:
        """Let a request wait; see `GenerationEngine.add`."""
        self.check(request, name)
        self._calls.note(request)
        return self._shared.add(request)

    def cancel(self, request_id: int) -> None:
        """End all samples of a request that have not ended; see `GenerationEngine.cancel`."""
        self._calls.note(request_id)
        request = self._shared.stop_waiting(request_id)
        if request is not None:
            self._take(request_id, request)
        for local_number in self._shared.local_numbers(request_id):
            super().cancel(local_number)

    def step(self) -> list[Event]:
        """Compute one step on each rank; every 8 steps returns what has happened since, on all of them.

        Raises:
            ReallmError: the error of the first rank on which a step has failed since the last exchange. The same on all
                ranks.
            DataError: ranks have made different calls.
        """
        if self.has_work and self._n_steps % STEPS_BETWEEN_EXCHANGES == 0:
            self._exchange()
        events, self._told = self._told, []
        if not self.has_work:
            self._n_steps = 0
            self._shard()
            return events
        self._n_steps += 1
        self._gather()
        self._compute()
        return events

    def run(self) -> list[Completion]:
        """Step until nothing is left to do; returns the completions by request, then by sample."""
        self._tells_tokens = False
        try:
            return super().run()
        finally:
            self._tells_tokens = True

    def weights_changed(self) -> None:
        """Forget what was computed with the weights as they were, before the next step; see `GenerationEngine`."""
        self._has_new_weights = True

    def close(self) -> None:
        """End all samples that have not ended, without events, and free the memory of the cache."""
        super().close()
        self._shared.clear()
        self._untold.clear()
        self._told.clear()
        self._shard()

    # ------------------------------------------------------------------ private helpers

    def _compute(self) -> None:
        """Compute a step of this rank, unless one has failed; the next exchange tells."""
        if self._error is not None:
            return
        try:
            if self._has_new_weights:
                self._has_new_weights = False
                super().weights_changed()
            if not super().has_work:
                return
            events = super().step()
        except Exception as error:  # whatever the error, the other ranks wait in the exchange
            self._error = error
            return
        self._untold.append(
            [self._shared.to_json(each) for each in events if self._tells_tokens or isinstance(each, FinishedEvent)]
        )

    def _exchange(self) -> None:
        """Tell the other ranks what has happened, hear it from them, and take requests."""
        self._calls.compare(self._mesh.all)
        message = {
            "error": None if self._error is None else describe_error(self._error, self._mesh.rank),
            "events": self._untold,
            "load": self.load,
        }
        local_error, self._error, self._untold = self._error, None, []
        by_rank = all_gather_json(message, self._mesh.dp)
        messages = [by_rank[rank] for rank in self._mesh.layout.dp_ranks(self._mesh.coordinate)]
        self._told += self._shared.from_json([each["events"] for each in messages])
        raise_first_error([each["error"] for each in by_rank.values()], local_error)
        for number, request in self._shared.hand_out([Load(*each["load"]) for each in messages]):
            self._take(number, request)

    def _take(self, number: int, request: Request) -> None:
        """Let this rank compute a request, or a part of its samples."""
        self._shared.taken(number, super().add(request))

    def _gather(self) -> None:
        """Gather parameters that FSDP shards for the time in which there is work; they may be new ones."""
        if is_sharded(self._network):  # a training step in the middle of it shards them again
            self._shard()
            self._gathered = ExitStack()
            self._gathered.enter_context(unsharded(self._network))
            self._has_new_weights = True

    def _shard(self) -> None:
        """Free gathered parameters."""
        if self._gathered is not None:
            self._gathered.close()
            self._gathered = None
