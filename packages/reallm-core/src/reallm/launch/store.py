"""The key-value store of a job, with a timeout for every call.

torch's client waits forever for a server that exists but does not answer, such as a stopped process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from reallm.errors import PeerError
from reallm.foreign_files import NOT_JSON, parse_json
from reallm.printable import printable_line

ANSWER_TIMEOUT = timedelta(seconds=30)


class Store(Protocol):
    """The methods of `torch.distributed.Store` that are used."""

    def set(self, key: str, value: str) -> None:
        """Set a value for all processes."""

    def get(self, key: str) -> bytes:
        """The value of a key; waits until it is set."""

    def add(self, key: str, amount: int) -> int:
        """Add to the counter at a key, and return its new value."""

    def check(self, keys: list[str]) -> bool:
        """Whether all of the keys are set."""


def read_text(store: Store, key: str) -> str:
    """The value of a key that is set, as one printable line, whoever has set it."""
    return printable_line(store.get(key).decode(errors="replace"))


def read_json(store: Store, key: str) -> Any:
    """The value of a key that is set.

    Raises:
        PeerError: it is not JSON, so no process of this job has set it.
    """
    try:
        return parse_json(store.get(key))
    except NOT_JSON as error:
        raise PeerError(
            f"the value of '{key}' in the job's store is not from this job; only its machines must reach its port"
        ) from error


class StoreWithTimeout:
    """A store that is called in a separate thread, so that the caller can stop waiting for it.

    Args:
        raw: torch's store; methods must not be called that wait for a key which is not set.
        server: name of the process that serves it, for error messages.
        timeout: timeout of each call.

    Raises:
        PeerError: from every method, once a call has not returned in time.
    """

    def __init__(self, raw: Store, server: str, timeout: timedelta = ANSWER_TIMEOUT) -> None:
        self.raw = raw
        self._timeout_message = (
            f"{server} has not answered for {timeout.total_seconds():g} s; see what it is waiting for"
        )
        self._timeout_s = timeout.total_seconds()
        self._calls: SimpleQueue[tuple[Callable[[], Any], SimpleQueue[Any]]] = SimpleQueue()
        self._lock = threading.Lock()
        self._is_lost = False
        threading.Thread(target=self._serve, name="store", daemon=True).start()

    def set(self, key: str, value: str) -> None:
        """See `Store`."""
        self._call(lambda: self.raw.set(key, value))

    def get(self, key: str) -> bytes:
        """See `Store`; the key must be set."""
        value: bytes = self._call(lambda: self.raw.get(key))
        return value

    def add(self, key: str, amount: int) -> int:
        """See `Store`."""
        value: int = self._call(lambda: self.raw.add(key, amount))
        return value

    def check(self, keys: list[str]) -> bool:
        """See `Store`."""
        value: bool = self._call(lambda: self.raw.check(keys))
        return value

    def _call(self, function: Callable[[], Any]) -> Any:
        with self._lock:
            if not self._is_lost:
                result: SimpleQueue[Any] = SimpleQueue()  # one per call: a signal may have ended an earlier wait
                self._calls.put((function, result))
                try:
                    value, error = result.get(timeout=self._timeout_s)
                except Empty:
                    self._is_lost = True
            if self._is_lost:
                raise PeerError(self._timeout_message)
        if error is not None:
            raise error
        return value

    def _serve(self) -> None:
        while True:
            function, result = self._calls.get()
            try:
                result.put((function(), None))
            except Exception as error:  # any kind; the caller raises it
                result.put((None, error))
