"""The server of `FaultServer`: forks for each request, a line of JSON on standard input, and writes the exit code."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import select
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

import typer.main

from tests.helpers.io_faults import TIMEOUT_S, Target
from tests.helpers.io_faults.allocations import name_allocations
from tests.helpers.ranks import PRELOADED

_PR_SET_PDEATHSIG = 1


def serve() -> None:
    """Answer requests until there are no more; in a forked process, run one and exit."""
    for name in [*PRELOADED, *sys.argv[1:]]:
        importlib.import_module(name)
    typer.main.get_command = functools.cache(typer.main.get_command)  # else made anew in each process
    _freeze()
    while line := sys.stdin.readline():
        request = json.loads(line)
        if request["is_warm_up"]:
            code = _warm_up(request)
        else:
            child = os.fork()
            if child == 0:
                _run(request)
            code = _wait(child, TIMEOUT_S)
        sys.stdout.write(json.dumps(code) + "\n")
        sys.stdout.flush()


def _freeze() -> None:
    gc.collect()
    gc.freeze()  # else a collection in a forked process would copy all pages


def _warm_up(request: dict[str, Any]) -> int:
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        code = _target(request)(request["arguments"]) or 0
    _freeze()
    return code


def _target(request: dict[str, Any]) -> Target:
    module, _, function = request["target"].partition(":")
    return getattr(importlib.import_module(module), function)


def _wait(child: int, timeout_s: float) -> int | None:
    """The exit code, negative for a signal; None if the process had to be killed."""
    ended = os.pidfd_open(child)
    in_time = bool(select.select([ended], [], [], timeout_s)[0])
    os.close(ended)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # processes that it may have left as well
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if in_time else None


def _run(request: dict[str, Any]) -> NoReturn:
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgid(0, 0)
    for number, path in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
        opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["IO_FAULTS_CONTROL"] = request["control"]
    code = 1
    try:
        target = _target(request)
        if request["of_memory"]:
            name_allocations(libc)
        libc.io_faults_attach(os.fsencode(request["control"]))
        code = target(request["arguments"]) or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:  # what Python does at its end, without taking apart modules, which takes as long as a run
        threading._shutdown()  # type: ignore[attr-defined]  # joins the threads that are no daemons
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
