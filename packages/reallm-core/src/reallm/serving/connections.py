"""`Connection`: a client's connection, which it cannot keep longer than it needs it, and whose errors are JSON."""

from __future__ import annotations

import asyncio
import resource
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from reallm.serving.access_log import LOGGER
from reallm.serving.errors import APIError

SECONDS_TO_TRANSFER = 60.0
"""How long a request may take to arrive, and how long a client may receive nothing of what is sent to it."""
SECONDS_TO_LINGER = 2.0
"""How long what a refused client still sends is read and dropped; closing at once could keep the answer from it."""
_MOST = 1024


class Connection(H11Protocol):
    """uvicorn's connection for HTTP/1.1, with bounds.

    What is not HTTP, and what takes too long, is refused in the form of the API. Someone has to call `check`.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse the client if there are too many."""
        super().connection_made(transport)
        self._is_refused = False
        self._waits_since: float | None = self.loop.time()
        self._received_at, self._n_unsent = self.loop.time(), 0
        if len(self.connections) > most_connections():
            self._refuse(APIError("the server has too many connections; try again later", status=503), lingers=False)

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request, or drop it if the client has been refused."""
        if not self._is_refused:
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._refuse(APIError("this is not a request in HTTP/1.1, or its head is too long"))

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._waits_since = self.loop.time()
        super().on_response_complete()

    def check(self, now: float) -> None:
        """End the connection if the client stalls; to be called every second or so with the loop's time."""
        n_unsent = self.transport.get_write_buffer_size()
        if n_unsent == 0 or n_unsent < self._n_unsent:
            self._received_at = now
        self._n_unsent = n_unsent
        if now - self._received_at > SECONDS_TO_TRANSFER:
            self.transport.abort()  # closing would wait for the client to receive the rest
        elif self._is_refused or self.transport.is_closing() or self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = now
        elif now - self._waits_since > SECONDS_TO_TRANSFER:
            if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
                self.transport.close()  # nothing has come that could be answered
            else:
                problem = f"the request has not arrived within {SECONDS_TO_TRANSFER:g} seconds"
                self._refuse(APIError(problem, status=HTTPStatus.REQUEST_TIMEOUT))

    def _refuse(self, error: APIError, *, lingers: bool = True) -> None:
        """Answer with an error, unless an answer has begun, and end the connection."""
        LOGGER.info("%s: %s", error.status, error)
        self._is_refused = True
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the application learns that nobody waits for its answer
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.abort()
                return
        body = error.body.encode()
        self.transport.write(
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            + body
        )
        if lingers and self.transport.can_write_eof():
            self.transport.write_eof()
            self.flow.resume_reading()
            self.loop.call_later(SECONDS_TO_LINGER, self.transport.abort)
        else:
            self.transport.close()


def most_connections() -> int:
    """Most connections at a time: half of the files that the process may open, which leaves it enough for others."""
    return min(_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


def backlog() -> int:
    """Connections that the system holds until they are accepted: asyncio accepts all of them at once, and in the next
    turns of its loop as many again, before the first one is refused and its file closed."""
    return max(1, min(128, most_connections() // 4))
