"""Runs the application on a socket until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from reallm.launch.signals import INTERRUPTED
from reallm.serving.connections import Connection, backlog
from reallm.serving.engine_thread import EngineThread

_UVICORN = logging.getLogger("uvicorn.error")
SECONDS_TO_CLOSE = 5
"""How long connections may take to close when the server stops, such as those of clients that do not read."""


class Server(uvicorn.Server):
    """An HTTP server that ends the engine's answers when it is told to stop.

    Args:
        app: the application.
        engine: the thread that generates for it.
        when_started: called when the server accepts connections.
    """

    def __init__(self, app: FastAPI, engine: EngineThread, when_started: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                backlog=backlog(),
                timeout_graceful_shutdown=SECONDS_TO_CLOSE,
            )
        )
        self._engine = engine
        self._when_started = when_started
        self.exit_code = 0
        """Code for the process: 0, 1 if the engine failed, 130 if Ctrl-C ended the server."""

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes or the engine fails."""
        level = _UVICORN.level
        try:
            super().run(sockets)
        finally:
            _UVICORN.setLevel(level)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        self._when_started()

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop, asked ten times a second."""
        if self._engine.has_failed:
            self.exit_code = 1
            return True
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in [*self.server_state.connections]:
                if isinstance(connection, Connection):
                    connection.check(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the connections, those of clients that do not as well."""
        _UVICORN.setLevel(logging.CRITICAL)  # a connection that is cut off now is not worth a traceback
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at a signal; a second Ctrl-C does not wait for connections to close.

        uvicorn's own would raise the signal again in the end.
        """
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self.exit_code = INTERRUPTED if sig == signal.SIGINT else 0
        self._engine.stop()
