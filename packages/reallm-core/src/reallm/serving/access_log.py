"""`AccessLog`: one line in the log for each request."""

from __future__ import annotations

import logging
import time
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reallm.errors import counted
from reallm.printable import printable_line
from reallm.serving.answer import Answer
from reallm.serving.errors import CLIENT_CLOSED_REQUEST

LOGGER = logging.getLogger(__name__)


class AccessLog:
    """ASGI middleware that logs method, path, status, tokens and tokens per second of each request when it has ended.

    The application sets `request.state.answer` for a request that generates, and `request.state.problem` to the message
    of an error.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, then log."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state, start, status = scope.setdefault("state", {}), time.monotonic(), 500

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting_status)
        finally:
            answer = state.get("answer")
            if answer is not None and answer.is_cancelled:
                status = CLIENT_CLOSED_REQUEST
            line = f"{scope['method']} {quote(scope['path'])} {status}"
            if problem := state.get("problem") or (answer and answer.error):
                line += f": {printable_line(str(problem))}"
            elif answer is not None:
                line += f": {_tokens(answer, time.monotonic() - start)}"
            LOGGER.info(line)


def _tokens(answer: Answer, seconds: float) -> str:
    usage = answer.usage
    end = ", the client went away" if answer.is_cancelled else ""
    return (
        f"{counted(usage.prompt_tokens, 'prompt token')}, {counted(usage.completion_tokens, 'new token')} in "
        f"{seconds:.1f} s, {usage.completion_tokens / seconds:.1f} tokens/s{end}"
    )
