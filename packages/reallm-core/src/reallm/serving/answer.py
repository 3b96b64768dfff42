"""`Answer`: what the engine generates for one request of the API, handed from its thread to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from reallm.generation.request import Event, FinishedEvent, Request, TokenEvent
from reallm.serving.responses import Usage


class Answer:
    """The events of the engine requests of one API request, in the order in which they happen.

    Iterating it gives each event with the index of its sample among all samples of all prompts, until all have ended,
    or raises the error that ended them.

    Args:
        requests: the engine's requests, at least one, all with the same number of samples.
        cancel: called once if the answer is no longer wanted before all samples have ended.
    """

    def __init__(self, requests: Sequence[Request], cancel: Callable[[Answer], None]) -> None:
        self.requests = requests
        self._cancel = cancel
        self._loop = asyncio.get_running_loop()
        self._received: asyncio.Queue[tuple[int, Event] | Exception] = asyncio.Queue()
        self.n_samples = len(requests) * requests[0].config.n
        self.is_cancelled = False
        self.error: Exception | None = None
        """The error that ended it."""
        self._n_running = self.n_samples
        self._n_tokens = 0

    @property
    def has_ended(self) -> bool:
        """Whether all samples have ended, or an error has ended them."""
        return self._n_running == 0

    @property
    def usage(self) -> Usage:
        """The numbers of tokens so far."""
        n_prompt = sum(len(request.prompt_ids) for request in self.requests)
        return Usage(prompt_tokens=n_prompt, completion_tokens=self._n_tokens, total_tokens=n_prompt + self._n_tokens)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        while not self.has_ended:
            item = await self._received.get()
            if isinstance(item, Exception):
                self._n_running, self.error = 0, item
                raise item
            _, event = item
            self._n_tokens += isinstance(event, TokenEvent)
            self._n_running -= isinstance(event, FinishedEvent)
            yield item

    def cancel(self) -> None:
        """End the samples that have not ended yet; nothing if all have."""
        if not self.has_ended:
            self._n_running, self.is_cancelled = 0, True
            self._cancel(self)

    def hand_over(self, items: Sequence[tuple[int, Event] | Exception]) -> None:
        """Add events, or the error that ends the answer. Called by the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._receive, items)
        except RuntimeError:  # the event loop has been closed, with everything that waited in it
            assert self._loop.is_closed()

    def _receive(self, items: Sequence[tuple[int, Event] | Exception]) -> None:
        for item in items:
            self._received.put_nowait(item)
