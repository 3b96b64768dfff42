"""Runs commands in processes in which one call of the operating system fails: the N-th about files in given folders.

    with FaultServer() as server:
        undisturbed = server.run(["sft", ...], [folder])
        for number in range(1, len(undisturbed.calls) + 1):
            ended = server.run(["sft", ...], [folder], Fault(number, errno.EIO))
            assert ended.code in (0, 2), ended

`shim.c` is compiled with `cc` and loaded before libc (LD_PRELOAD) into a server that imports torch and the core once
and is forked for each command. Files under the folders are all that counts: libraries, caches of Python and the output
of the command fail only if the folders hold them. Linux only.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from reallm.cli.main import run
from workspace import ROOT

PRELOADED = (
    "reallm.cli.main",
    "reallm.algorithms.sft.interface",
    "reallm.builtin",
    "reallm.data.tokenization.tokenized_rows",
    "reallm_datasets.encoders.prompt_answer",
    "reallm_datasets.prompt_answer",
    "reallm_hf_llama.plugin",
    "tests.helpers.io_faults.scenarios",
)
MODES = ("error", "short", "torn")
_NOTES = ("tokens of ", "cached tokens ", "note: ", "1 request failed while the engine generated: ")
_GOING_ON = "going on with the next"
_HEADER = struct.Struct("=qqqiiii24s64s1024s")
_CALL = struct.Struct("=24s232s")
_MAX_CALLS = 65536
TIMEOUT_S = 120.0
"""Seconds after which a command is killed, with all processes that it started."""

Target = Callable[[Sequence[str]], int | None]
"""What runs the arguments of a command and returns its exit code: a function at the top of a module."""


@dataclass(frozen=True)
class Fault:
    """A fault of one call."""

    number: int
    """Which call fails, from 1; 0: none."""
    error: int = errno.EIO
    """Its `errno`."""
    mode: Literal["error", "short", "torn"] = "error"
    """`error`: it fails. `short`: a read or a write moves half of its bytes, without an error. `torn`: likewise, and
    the next write fails, as on a disk that fills up. Other calls are left alone by the last two."""
    name: str = ""
    """If given, the first call of this name from that number on: threads make calls in an order of their own."""
    end: str = ""
    """If given, the end of the path of that call, of at most 63 bytes."""

    def __str__(self) -> str:
        mode = "" if self.mode == "error" else f"{self.mode}, "
        return f"call {self.number}: {mode}{errno.errorcode[self.error]}"


@dataclass(frozen=True)
class Call:
    """A call about a file."""

    name: str
    """Of libc's function; `open creating` and the like for files that may be new."""
    path: str
    """The file; for two paths the second."""


@dataclass(frozen=True)
class Ended:
    """How a command has ended."""

    code: int | None
    """Its exit code, negative for a signal; None if it hung and was killed."""
    out: str
    err: str
    calls: tuple[Call, ...] = field(repr=False)
    """All calls about files in the folders, in the order in which they were made."""
    failed: Call | None
    """The one that failed; None if none did."""

    @property
    def errors(self) -> list[str]:
        """The lines of standard error, without notes."""
        return [
            line
            for line in self.err.splitlines()
            if line.strip() and not line.startswith(_NOTES) and not line.endswith(_GOING_ON)
        ]


def has_compiler() -> bool:
    """Whether there is what the shim needs."""
    return sys.platform == "linux" and shutil.which("cc") is not None


class FaultServer:
    """Runs commands one after the other in processes forked from one that has the shim and all imports."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="io-faults-")
        self._control = Path(self._folder.name, "control")
        shim = Path(self._folder.name, "shim.so")
        source = Path(__file__).with_name("shim.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
        path = os.pathsep.join([str(ROOT / "tools"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        variables = {
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": path,
            "LD_PRELOAD": str(shim),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.io_faults.server", *PRELOADED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **variables},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def __enter__(self) -> FaultServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.close()  # the server then ends
        self._process.wait()
        self._answers.close()
        self._folder.cleanup()

    def warm_up(self, arguments: Sequence[str], target: Target = run) -> None:
        """Run a command in the server itself, which no call of fails: what Python and libraries keep of it, such as
        compiled templates and fonts, each command has from then on, and takes half of the time.
        """
        code = self._answer(arguments, target, is_warm_up=True)
        assert code == 0, code

    def run(
        self,
        arguments: Sequence[str],
        folders: Sequence[Path],
        fault: Fault | None = None,
        *,
        of_memory: bool = False,
        target: Target = run,
    ) -> Ended:
        """Run a command for at most `TIMEOUT_S`.

        Args:
            arguments: of the command.
            folders: those whose files count, as real paths.
            fault: which call fails; None: none.
            of_memory: allocations of tensors count, and not calls about files. The path of such a call is the lines of
                Python that make it, and its name is that of all with the same lines.
            target: what runs it.
        """
        fault = fault or Fault(0)
        mode = MODES.index(fault.mode)
        names = os.fsencode(":".join(str(folder) for folder in folders))
        with self._control.open("wb") as file:
            name, end = fault.name.encode(), os.fsencode(fault.end)
            file.write(_HEADER.pack(0, fault.number, 0, fault.error, mode, of_memory, 0, name, end, names))
            file.truncate(_HEADER.size + _MAX_CALLS * _CALL.size)
        out, err = (Path(self._folder.name, name) for name in ("out", "err"))
        code = self._answer(arguments, target, of_memory=of_memory, out=out, err=err)
        with self._control.open("rb") as file:
            n_calls, _, fired, *_ = _HEADER.unpack(file.read(_HEADER.size))
            written = file.read(min(n_calls, _MAX_CALLS) * _CALL.size)
        calls = tuple(Call(*(_text(one) for one in found)) for found in _CALL.iter_unpack(written))
        assert n_calls <= _MAX_CALLS, "more calls than are noted down"
        failed = calls[fired - 1] if fired else None
        return Ended(code, out.read_text(), err.read_text(errors="replace"), calls, failed)

    def _answer(
        self,
        arguments: Sequence[str],
        target: Target,
        *,
        is_warm_up: bool = False,
        of_memory: bool = False,
        out: Path = Path(os.devnull),
        err: Path = Path(os.devnull),
    ) -> int | None:
        request = {
            "target": f"{target.__module__}:{target.__name__}", "arguments": list(arguments), "is_warm_up": is_warm_up,
            "control": str(self._control), "of_memory": of_memory, "out": str(out), "err": str(err),
        }  # fmt: skip
        self._requests.write(json.dumps(request) + "\n")
        self._requests.flush()
        return json.loads(self._answers.readline())


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode(errors="replace")
