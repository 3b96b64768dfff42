"""HTTP exchanges byte by byte, for requests that no client library would send, and what came back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Ending = Literal["read", "half-close", "close", "reset"]
"""What the client does after sending: read until the server closes; say first that it sends no more; or go away, by
closing or resetting the connection."""

PATIENCE = 180.0
"""Seconds after which a server that neither answers nor closes is given up."""


@dataclass(frozen=True)
class Exchange:
    """What a client sends on one connection, and how it ends.

    Args:
        parts: sent one after the other.
        pause: seconds between parts.
        ending: see `Ending`.
        leave_after: bytes that a client that goes away receives before.
    """

    parts: Sequence[bytes]
    pause: float = 0.0
    ending: Ending = "read"
    leave_after: int = 0


@dataclass(frozen=True)
class HTTPAnswer:
    """One response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The server-sent events of the body as JSON, the last one `[DONE]` as text."""
        events = [event.removeprefix("data: ") for event in self.body.decode().split("\n\n")[:-1]]
        return [event if event == "[DONE]" else json.loads(event) for event in events]


def post(path: str, body: bytes, *headers: str, keep_alive: bool = False) -> bytes:
    """A request; the headers are added to its own."""
    own = ["Host: soak", f"Content-Length: {len(body)}", "Content-Type: application/json"]
    own += [] if keep_alive else ["Connection: close"]
    names = {header.split(":")[0].lower() for header in headers}
    lines = [f"POST {path} HTTP/1.1", *(line for line in own if line.split(":")[0].lower() not in names), *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def exchange(host: str, port: int, sent: Exchange) -> bytes:
    """What the server sends on one connection until it closes it, or the client goes away.

    Raises:
        TimeoutError: the server does not close the connection.
    """
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 24)
    connection: socket.socket = writer.get_extra_info("socket")
    received = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            sending = asyncio.create_task(_send(writer, sent))
            try:
                if sent.ending in ("close", "reset"):
                    await sending
                while sent.ending in ("read", "half-close") or len(received) < sent.leave_after:
                    data = await reader.read(1 << 16)
                    if not data:
                        break
                    received += data
            except ConnectionError:  # what was received before counts
                pass
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
    finally:
        if sent.ending == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return bytes(received)


async def _send(writer: asyncio.StreamWriter, sent: Exchange) -> None:
    with contextlib.suppress(ConnectionError):  # the server may refuse what has not all been sent
        for i, part in enumerate(sent.parts):
            if i and sent.pause:
                await asyncio.sleep(sent.pause)
            writer.write(part)
            await writer.drain()
        if sent.ending == "half-close":
            writer.write_eof()


def answers_of(received: bytes, *, is_head: bool = False) -> list[HTTPAnswer]:
    """The responses in what was received, without interim ones.

    Raises:
        ValueError: it is not a sequence of whole responses.
    """
    answers = []
    while received:
        head, separator, rest = received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        version, _, status = lines[0].partition(" ")
        if version != "HTTP/1.1" or not separator:
            raise ValueError(f"not a response: {received[:200]!r}")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        code = int(status[:3])
        if code == 100:
            received = rest
            continue
        body, received = (b"", rest) if is_head else _body(headers, rest)
        answers.append(HTTPAnswer(code, headers, body))
    return answers


def _body(headers: dict[str, str], rest: bytes) -> tuple[bytes, bytes]:
    """The body of a response, and what follows."""
    if headers.get("transfer-encoding") != "chunked":
        if "content-length" not in headers:  # as in HTTP/1.0, until the connection ends
            return rest, b""
        length = int(headers["content-length"])
        if len(rest) < length:
            raise ValueError(f"the body has {len(rest)} of {length} bytes")
        return rest[:length], rest[length:]
    body = bytearray()
    while True:
        size, separator, rest = rest.partition(b"\r\n")
        if not separator:
            raise ValueError("the body ends early")
        n = int(size, 16)
        body += rest[:n]
        if rest[n : n + 2] != b"\r\n":
            raise ValueError("the body ends early")
        rest = rest[n + 2 :]
        if not n:
            return bytes(body), rest


def flaw_of_refusal(answer: HTTPAnswer, *, is_head: bool = False) -> str | None:
    """Why an answer is no proper refusal: a status of 4xx and one error in the form of the API; None if it is one."""
    if not 400 <= answer.status < 500:
        return f"status {answer.status}: {answer.body[:300]!r}"
    if is_head:
        return None
    try:
        error = json.loads(answer.body)["error"]
        message = error["message"]
        kind, keys = error["type"], set(error)
    except (ValueError, KeyError, TypeError):
        return f"no error in the form of the API: {answer.status} {answer.body[:300]!r}"
    if keys != {"message", "type", "param", "code"} or kind != "invalid_request_error":
        return f"no error in the form of the API: {error}"
    if not message or "\n" in message or "Traceback" in message or len(message) > 2000:
        return f"the message is not one short line: {message[:300]!r}"
    return None
