"""Errors in the form of the OpenAI API: `{"error": {"message", "type", "param", "code"}}` with an HTTP status."""

from __future__ import annotations

import json

from reallm.errors import cut
from reallm.printable import printable_line

_LONGEST_MESSAGE = 1000
CLIENT_CLOSED_REQUEST = 499
"""Status of a request whose client went away before it was answered, as nginx has it; nobody receives it."""


class APIError(Exception):
    """An error that is the answer to a request.

    Args:
        message: one line: what is wrong, and what to do. What it quotes is made printable, and cut if it is very long.
        status: HTTP status.
        param: the parameter that is wrong, if it is one.
        code: name of the error for programs, where the API has one.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(cut(printable_line(message), _LONGEST_MESSAGE))
        self.status, self.code = status, code
        self.param = None if param is None else cut(printable_line(param), _LONGEST_MESSAGE)

    @property
    def body(self) -> str:
        """What the client gets, as JSON."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return json.dumps({"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}})


class ClientGoneError(Exception):
    """The client went away before its request was answered."""
