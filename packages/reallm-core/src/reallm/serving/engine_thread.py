"""`EngineThread`: the thread that owns the generation engine, and through which the event loop talks to it."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Self

import torch

from reallm.errors import ReallmError, counted, one_line
from reallm.generation.balance import Load
from reallm.generation.engine import GenerationEngine
from reallm.generation.request import Event, FinishedEvent, Request
from reallm.machine_errors import as_machine_error
from reallm.serving.answer import Answer
from reallm.serving.errors import APIError

LOGGER = logging.getLogger(__name__)


@dataclass
class _Place:
    """Where the events of an engine request go."""

    answer: Answer
    first_index: int
    """Index of its first sample in the answer."""
    n_running: int
    """Number of its samples that have not ended."""


class EngineThread:
    """Thread that steps an engine while it has work, and takes up requests and cancellations between two steps.

    A context manager, which ends the thread and closes the engine. All methods may be called by any thread.
    """

    def __init__(self, engine: GenerationEngine) -> None:
        self._engine = engine
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._places: dict[int, _Place] = {}
        self._refusal: APIError | None = None
        self._is_closed = False
        self._thread = Thread(target=self._run, name="engine")
        self.has_failed = False
        """Whether the engine cannot go on after an error; requests are refused."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        self._inbox.put(self._close)
        self._thread.join()

    def submit(self, requests: Sequence[Request]) -> Answer:
        """Start to answer; a refusal of the engine is raised where the answer is iterated."""
        answer = Answer(requests, lambda answer: self._inbox.put(partial(self._cancel, answer)))
        self._inbox.put(partial(self._add, answer))
        return answer

    def stop(self) -> None:
        """End the answers in flight and refuse further ones. A signal handler may call it."""
        self._inbox.put(partial(self._refuse, APIError("the server is shutting down", status=503)))

    async def load(self) -> Load:
        """What the engine is busy with, between two steps."""
        found: Future[Load] = Future()

        def tell() -> None:
            if found.set_running_or_notify_cancel():  # else the client has gone away
                found.set_result(self._engine.load)

        self._inbox.put(tell)
        return await asyncio.wrap_future(found)

    # ------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        while not self._is_closed:
            if self._inbox.empty() and self._refusal is None and self._engine.has_work:
                self._step()
            else:
                self._inbox.get()()

    def _close(self) -> None:
        self._is_closed = True
        self._engine.close()

    def _add(self, answer: Answer) -> None:
        if self._refusal is not None:
            answer.hand_over([self._refusal])
            return
        first_index = 0
        try:
            for request in answer.requests:
                self._places[self._engine.add(request)] = _Place(answer, first_index, request.config.n)
                first_index += request.config.n
        except ReallmError as error:  # it can never fit
            self._cancel(answer)
            answer.hand_over([APIError(str(error))])
        except Exception as error:
            _log("a request could not be added", error)
            self._cancel(answer)
            answer.hand_over([_failure(error)])

    def _cancel(self, answer: Answer) -> None:
        for request_id in [number for number, place in self._places.items() if place.answer is answer]:
            del self._places[request_id]
            self._engine.cancel(request_id)

    def _refuse(self, refusal: APIError) -> None:
        """End all answers, and do not begin others."""
        self._refusal = refusal
        self._end_answers(refusal)

    def _end_answers(self, error: APIError) -> None:
        answers = list(dict.fromkeys(place.answer for place in self._places.values()))
        for answer in answers:
            answer.hand_over([error])
        for answer in answers:
            self._cancel(answer)

    def _step(self) -> None:
        try:
            events = self._engine.step()
        except Exception as error:  # a defect must not end the server in silence, with clients waiting
            self._fail(error)
            return
        items: defaultdict[Answer, list[tuple[int, Event]]] = defaultdict(list)
        for event in events:
            place = self._places.get(event.request_id)
            if place is None:
                continue  # it has been cancelled
            if isinstance(event, FinishedEvent):
                place.n_running -= 1
                if not place.n_running:
                    del self._places[event.request_id]
                if not event.completion.is_finite:
                    self._end_nonfinite(place.answer, event)
                    items.pop(place.answer, None)
                    continue
            items[place.answer].append((place.first_index + event.sample, event))
        for answer, found in items.items():
            answer.hand_over(found)

    def _end_nonfinite(self, answer: Answer, event: FinishedEvent) -> None:
        n_tokens = len(event.completion.token_ids)
        problem = f"the logits of new token {n_tokens} are not finite; the weights are damaged, or the dtype too small"
        LOGGER.warning("%s", problem)
        self._cancel(answer)
        answer.hand_over([APIError(problem, status=500)])

    def _fail(self, error: Exception) -> None:
        """End the answers in flight after an error of a step; go on with others if the engine can."""
        _log(f"{counted(len(self._places), 'request')} failed while the engine generated", error)
        failure = _failure(error)
        try:
            self._end_answers(failure)
            self.has_failed = isinstance(error, torch.AcceleratorError)  # the GPU's context is lost with it
        except Exception:
            LOGGER.exception("the engine cannot go on")
            self.has_failed = True
        if self.has_failed:
            self._places.clear()
            self._refusal = failure


def _log(what: str, error: Exception) -> None:
    """Log a defect with its traceback, and what the machine lacks in one line."""
    known = as_machine_error(error)
    if known is error:
        LOGGER.error("%s", what, exc_info=error)
    else:
        LOGGER.error("%s: %s", what, known)


def _failure(error: Exception) -> APIError:
    return APIError(f"the engine failed: {one_line(error)}", status=500)
