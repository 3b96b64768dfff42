"""`WorkerProcess`: one process that calls reward functions, started when it is first needed."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from typing import Any

from reallm.errors import RewardError
from reallm.new_python import module_command

START_S = 120.0
"""Seconds that the import of reward functions may take."""


class TimedOutError(Exception):
    """The process has not answered in time."""


class EndedError(Exception):
    """The process has ended; says how."""


class WorkerProcess:
    """A process of `reallm.rewards.worker`.

    Args:
        locations: the functions.
    """

    def __init__(self, locations: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            module_command("reallm.rewards.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C does not reach it, not even while Python starts
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._buffer = b""
        self._end = weakref.finalize(self, _end, self._process)
        found = self.ask({"sys_path": sys.path, "locations": list(locations)}, START_S)
        if "failed" in found:
            self.end()
            raise RewardError(found["failed"])

    def ask(self, content: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send something, and wait for the answer.

        Raises:
            TimedOutError: there is none in time.
            EndedError: the process has ended.
        """
        assert self._process.stdin is not None
        try:
            text = json.dumps(content, default=dict)  # mappings of a batch's metadata are read-only, and no dicts
            self._process.stdin.write(f"{text}\n".encode())
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise EndedError(self._how_it_ended()) from None
        found: dict[str, Any] = json.loads(self._line(time.monotonic() + timeout_s))
        return found

    def _line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        file = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            if not select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimedOutError
            data = os.read(file, 1 << 16)
            if not data:
                raise EndedError(self._how_it_ended())
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        return f"the process ended with exit code {code}" if code >= 0 else f"the process was ended by signal {-code}"

    def end(self) -> None:
        """End the process now."""
        self._end()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if stream is not None:
                stream.close()
