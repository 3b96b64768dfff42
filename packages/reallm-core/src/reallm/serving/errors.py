"""Errors in the form of the OpenAI API: `{"error": {"message", "type", "param", "code"}}` with an HTTP status."""

from __future__ import annotations

import json

CLIENT_CLOSED_REQUEST = 499
"""Status of a request whose client went away before it was answered, as nginx has it; nobody receives it."""


class APIError(Exception):
    """An error that is the answer to a request.

    Args:
        message: one line: what is wrong, and what to do.
        status: HTTP status.
        param: the parameter that is wrong, if it is one.
        code: name of the error for programs, where the API has one.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> str:
        """What the client gets, as JSON in ASCII: what the message quotes may be no valid Unicode."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return json.dumps({"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}})


class ClientGoneError(Exception):
    """The client went away before its request was answered."""
