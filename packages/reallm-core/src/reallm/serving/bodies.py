"""Bodies of requests: bounded, read before anything is answered, and gone after that."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reallm.foreign_files import parse_json
from reallm.machine_memory import give_back_freed_memory
from reallm.serving.errors import APIError, ClientGoneError

MAX_BYTES = 16 << 20
"""Bytes of a body."""
_MAX_DROPPED = 4 * MAX_BYTES
_LARGE = 1 << 20
_SECONDS_TO_FREE = 1.0


class DrainBody:
    """ASGI middleware that receives the rest of a body before the answer is sent, and drops it.

    The rest of a request that is refused early would be in the system's buffers when the connection is closed, which
    then resets it, so that the client may never see why. A while after large bodies memory is given back.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._gives_back = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        n_received = 0
        has_more = b"expect" not in headers and _length(headers.get(b"content-length", b"0")) <= _MAX_DROPPED

        async def noting_end() -> Message:
            nonlocal has_more, n_received
            message = await receive()
            n_received += len(message.get("body", b""))
            has_more = has_more and message.get("more_body", False)
            return message

        async def after_the_body(message: Message) -> None:
            while has_more and n_received < _MAX_DROPPED:
                await noting_end()
            await send(message)

        try:
            await self._app(scope, noting_end, after_the_body)
        finally:
            if n_received > _LARGE and not self._gives_back:
                self._gives_back = True
                asyncio.get_running_loop().call_later(_SECONDS_TO_FREE, self._give_back)

    def _give_back(self) -> None:
        self._gives_back = False
        give_back_freed_memory()


async def read_body(request: Request) -> bytes:
    """The body of a request.

    Raises:
        APIError: it is too long.
        ClientGoneError: the client has gone away before it was sent.
    """
    too_long = APIError(f"the body has more than {MAX_BYTES:,} bytes; send several requests", status=413)
    if _length(request.headers.get("Content-Length", "0").encode()) > MAX_BYTES:
        raise too_long
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BYTES:
                raise too_long
    except ClientDisconnect:
        raise ClientGoneError from None
    return bytes(body)


def parse_body(body: bytes, content_type: str) -> Any:
    """The value that a body has in JSON.

    Raises:
        APIError: it is not sent as JSON, is none, or is nested too deeply.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise APIError("the body must be sent as JSON, with the header 'Content-Type: application/json'")
    if not body:
        raise APIError("the request has no body; it must be a JSON object")
    try:
        return parse_json(body)
    except RecursionError:
        raise APIError("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise APIError(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except UnicodeDecodeError:
        raise APIError("the body is not JSON: it is not valid Unicode") from None
    except ValueError:
        raise APIError("the body is not JSON that can be read: a number has too many digits") from None


def _length(header: bytes) -> int:
    return int(header) if header.isdigit() and len(header) < 20 else 0
