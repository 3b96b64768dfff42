"""The key-value store of a job, as one process asks it: every answer comes in time, or the store is given up.

torch's client waits for ever for a server that is there and does not answer, as that of a stopped process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from reallm.errors import PeerError

ANSWERS_WITHIN = timedelta(seconds=30)


class Store(Protocol):
    """What is used of a key-value store of `torch.distributed`."""

    def set(self, key: str, value: str) -> None:
        """Leave a value for all processes."""

    def get(self, key: str) -> bytes:
        """The value of a key, after waiting for it."""

    def add(self, key: str, amount: int) -> int:
        """Count at a key; the count now."""

    def check(self, keys: list[str]) -> bool:
        """Whether all of the keys are there."""


class TimedStore:
    """A store that is asked in a thread of its own.

    Args:
        raw: the store of torch; nobody waits in it for keys that are not there.
        server: what does not answer, in words.
        timeout: for each answer.

    Raises:
        PeerError: from every method, once an answer has not come in time.
    """

    def __init__(self, raw: Store, server: str, timeout: timedelta = ANSWERS_WITHIN) -> None:
        self.raw = raw
        self._silence = f"{server} has not answered for {timeout.total_seconds():g} s; see what it waits for"
        self._seconds = timeout.total_seconds()
        self._asked: SimpleQueue[tuple[Callable[[], Any], SimpleQueue[Any]]] = SimpleQueue()
        self._one_at_a_time = threading.Lock()
        self._is_lost = False
        threading.Thread(target=self._serve, name="store", daemon=True).start()

    def set(self, key: str, value: str) -> None:
        """See `Store`."""
        self._ask(lambda: self.raw.set(key, value))

    def get(self, key: str) -> bytes:
        """See `Store`; the key must be there."""
        value: bytes = self._ask(lambda: self.raw.get(key))
        return value

    def add(self, key: str, amount: int) -> int:
        """See `Store`."""
        value: int = self._ask(lambda: self.raw.add(key, amount))
        return value

    def check(self, keys: list[str]) -> bool:
        """See `Store`."""
        value: bool = self._ask(lambda: self.raw.check(keys))
        return value

    def _ask(self, question: Callable[[], Any]) -> Any:
        with self._one_at_a_time:
            if not self._is_lost:
                answer: SimpleQueue[Any] = SimpleQueue()  # its own: a signal may end the wait for the one before
                self._asked.put((question, answer))
                try:
                    value, error = answer.get(timeout=self._seconds)
                except Empty:
                    self._is_lost = True
            if self._is_lost:
                raise PeerError(self._silence)
        if error is not None:
            raise error
        return value

    def _serve(self) -> None:
        while True:
            question, answer = self._asked.get()
            try:
                answer.put((question(), None))
            except Exception as error:  # of any kind, raised where it was asked
                answer.put((None, error))
