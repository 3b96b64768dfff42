"""A process that calls reward functions: JSON lines in, JSON lines out. Imports no torch.

The first line has the `sys.path` of the run and the locations of the functions. Each further line is a call. What
functions print goes to standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import queue
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from reallm.launch.signals import leave_signals_to_parent

GRACE_S = 5.0
"""Seconds after its time-out at which a call ends the process by itself, if nobody else has."""


def main() -> None:
    """Answer calls until standard input ends."""
    lines = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    leave_signals_to_parent()
    received: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read, args=(lines, received), daemon=True).start()

    def answer(**content: Any) -> None:
        answers.write(f"{json.dumps(content)}\n")
        answers.flush()

    setup = received.get()
    sys.path[:] = setup["sys_path"]
    from reallm.rewards.functions import load  # as the run has it

    try:
        functions = [load(location) for location in setup["locations"]]
    except Exception as error:  # of the user's code; the run tells it
        answer(failed=" ".join(str(error).split()))
        return
    answer(ready=True)
    while True:
        call = received.get()
        if hasattr(signal, "setitimer"):  # ends the process even if the function never lets Python run a handler
            signal.setitimer(signal.ITIMER_REAL, call["timeout_s"] + GRACE_S)
        found = _call(functions[call["function"]], call["arguments"], call["seed"])
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        answer(**found)


def _read(lines: Any, received: queue.Queue[dict[str, Any]]) -> None:
    """Put what is received into the queue; without anyone to answer to, end the process."""
    for line in lines:
        received.put(json.loads(line))
    os._exit(0)


def _call(function: Callable[..., Any], arguments: dict[str, Any], seed: int) -> dict[str, Any]:
    """Call a function: its rewards, or a trace, or what is wrong with what it returned."""
    from reallm.rewards.functions import accepted
    from reallm.rewards.outcome import InvalidRewardsError, checked_rewards

    n = len(arguments["completions"])
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    try:
        found = function(**{name: arguments[name] for name in accepted(function, arguments)})
        if inspect.isawaitable(found):
            found = asyncio.run(_awaited(found))
    except BaseException as error:  # an exit of the function's is a failure too
        frames = None if error.__traceback__ is None else error.__traceback__.tb_next  # without this one
        return {"trace": "".join(traceback.format_exception(type(error), error, frames))}
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    try:
        return {"rewards": checked_rewards(found, n)}
    except InvalidRewardsError as error:
        return {"invalid": str(error), "index": error.index}


async def _awaited(found: Any) -> Any:
    return await found


if __name__ == "__main__":
    main()
