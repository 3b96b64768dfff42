"""Lets every call of a scenario fail once, and checks what is promised: it goes on, or ends with one line.

After an error the command is run again without a fault; what it leaves then must be what it leaves undisturbed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from reallm.cli.main import run
from tests.helpers.io_faults import Call, Ended, Fault, FaultServer, Target

READS = ("read", "pread", "readv")
WRITES = ("write", "pwrite", "writev", "sendfile", "copy_file_range")
TAKING_SPACE = (*WRITES, "creat", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat", "symlink",
                "symlinkat", "fsync", "fdatasync", "ftruncate", "fallocate", "posix_fallocate")  # fmt: skip
INTERRUPTIBLE = (*READS, *WRITES, "open", "openat", "fsync", "fdatasync", "ftruncate", "fallocate", "flock")
"""Those that may give EINTR and have then done nothing; `close` has closed the file."""
ASKING = ("access", "faccessat")
"""Python says yes or no, and not why."""

SHOWN_EVERY_S = 30.0
"""Seconds between lines about how far a sweep is."""

KILLED = 9
"""Exit code of a command that ends as if it were killed."""

LACKS_MEMORY = re.compile(r"error: (out of memory in|more memory is asked for|cannot write .*: more memory)")


@dataclass(frozen=True)
class Scenario:
    """A command whose calls fail.

    Args:
        arguments: of the command that works in a folder.
        result: what it leaves in the folder and prints: a mapping of plain values.
        inputs: other folders whose files count.
        told: what may be lost -> the words that then tell so on standard output.
        goes_on: whether the command that is run again goes on with what is in the folder; else it starts anew.
        of_memory: allocations of tensors fail, and not calls about files.
        target: what runs the command.
        killed_by: if given, each run begins in a folder in which the command was killed: what runs it until it ends
            with the exit code `KILLED`.
    """

    arguments: Callable[[Path], Sequence[str]]
    result: Callable[[Path, Ended], Mapping[str, Any]]
    inputs: Sequence[Path] = ()
    told: Mapping[str, str] = field(default_factory=dict)
    goes_on: bool = True
    of_memory: bool = False
    target: Target = run
    killed_by: Target | None = None


@dataclass(frozen=True)
class Outcome:
    """What has become of a fault."""

    fault: Fault
    call: Call | None
    """The call that failed; None if there were fewer calls."""
    code: int | None
    problem: str | None
    """What is not as promised, with the output; None if all is."""


class Sweep:
    """The faults of a scenario, run by a server in a folder of its own."""

    def __init__(self, server: FaultServer, scenario: Scenario, folder: Path) -> None:
        self._server, self._scenario, self._folder = server, scenario, folder / "case"
        self._killed = folder / "killed"
        if scenario.killed_by is not None:
            self._folder.mkdir()
            ended = server.run(scenario.arguments(self._folder), [self._folder], target=scenario.killed_by)
            assert ended.code == KILLED, ended
            self._folder.rename(self._killed)
        self._fresh()
        undisturbed = self._run()
        assert undisturbed.code == 0, undisturbed
        self.calls = undisturbed.calls
        """The calls of the undisturbed run."""
        self._expected = scenario.result(self._folder, undisturbed)

    def try_fault(self, fault: Fault) -> Outcome:
        """Run the scenario with a fault."""
        self._fresh()
        ended = self._run(fault)
        found = self._problem_of(ended, fault)
        if found is None and ended.code != 0:
            if not self._scenario.goes_on:
                self._fresh()
            again = self._run()
            if again.code != 0 or again.errors:
                found = f"run again: exit code {again.code}\n{again.err}"
            else:
                found = self._difference(again, ended.out + again.out, "run again: ")
        if found is not None:
            found = f"{fault}, {ended.failed}: {found}\n{_indented(ended.out[-2000:] + ended.err)}"
        return Outcome(fault, ended.failed, ended.code, found)

    def _fresh(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._scenario.killed_by is None:
            self._folder.mkdir()
        else:
            shutil.copytree(self._killed, self._folder, symlinks=True)

    def _run(self, fault: Fault | None = None) -> Ended:
        scenario = self._scenario
        folders = [self._folder, *scenario.inputs]
        return self._server.run(
            scenario.arguments(self._folder), folders, fault, of_memory=scenario.of_memory, target=scenario.target
        )

    def _problem_of(self, ended: Ended, fault: Fault) -> str | None:
        if ended.code == 0:
            return (
                f"standard error is not empty: {ended.err}"
                if ended.errors
                else self._difference(ended, ended.out + ended.err)
            )
        if ended.code is None:
            return "it hung"
        call = ended.failed
        is_of_torch = call is not None and call.path.endswith(".safetensors") and call.name.startswith("open")
        if (fault.error == errno.EINTR and not is_of_torch) or fault.mode == "short":
            return f"exit code {ended.code}, though nothing went wrong"
        if ended.code != 2:
            return f"exit code {ended.code}"
        if len(ended.errors) != 1 or not ended.errors[0].startswith("error: "):
            return "not one line of an error"
        (line,) = ended.errors
        if self._scenario.of_memory:
            return None if LACKS_MEMORY.match(line) else "the line does not say that there is no more memory"
        if call is not None and call.name in ASKING and re.search("not (read|writ)able", line):
            return None
        if (
            call is not None
            and call.path.endswith(".safetensors")
            and f"No such file or directory: {call.path}" in line
        ):
            return None  # what safetensors says of all errors of opening a file
        said = ended.out + line if line.endswith("as said above") else line
        if os.strerror(fault.error) not in said and f"os error {fault.error}" not in said:
            return "the line does not say the reason"
        if not any(str(folder) in said for folder in (self._folder, *self._scenario.inputs)):
            return "the line names no path"
        return None

    def _difference(self, ended: Ended, said: str, when: str = "") -> str | None:
        try:
            found = self._scenario.result(self._folder, ended)
        except (OSError, LookupError, ValueError) as error:
            return f"{when}what is left cannot be read: {error!r}"
        told = [key for key, words in self._scenario.told.items() if words in said]
        keys = [
            key for key in {**self._expected, **found} if self._expected.get(key) != found.get(key) and key not in told
        ]
        if not keys:
            return None
        return when + "; ".join(
            f"{key} is {found.get(key)!r:.300}, not {self._expected.get(key)!r:.300}" for key in keys
        )


def faults_of(calls: Sequence[Call]) -> list[Fault]:
    """All faults that the calls may have, those of calls that are unlike all before first."""
    return [fault for _, fault in ranked_faults_of(calls)]


def ranked_faults_of(calls: Sequence[Call]) -> list[tuple[int, Fault]]:
    """The same, each with how many calls of its kind there are up to its own."""
    if calls and calls[0].name.startswith("tensor "):
        return _faults_of_memory(calls)
    seen: Counter[tuple[str, str]] = Counter()
    found: list[tuple[int, Fault]] = []
    for number, call in enumerate(calls, 1):
        seen[kind_of(call)] += 1
        found += [(seen[kind_of(call)], fault) for fault in _faults_of(number, call)]
    return sorted(found, key=lambda one: (one[0], one[1].number))


def _faults_of(number: int, call: Call) -> Iterable[Fault]:
    name = call.name.replace("64", "")
    yield Fault(number, errno.EIO, name=call.name)
    if name in TAKING_SPACE or name.endswith("creating"):
        yield Fault(number, errno.ENOSPC, name=call.name)
    if name in WRITES:
        yield Fault(number, errno.ENOSPC, "torn", call.name)
    if name in (*READS, *WRITES):
        yield Fault(number, errno.EIO, "short", call.name)
    if name.removesuffix(" creating") in INTERRUPTIBLE:
        yield Fault(number, errno.EINTR, name=call.name)


def _faults_of_memory(calls: Sequence[Call]) -> list[tuple[int, Fault]]:
    """Each place of the code when it is reached first, and then when it is reached last."""
    first = {call.name: number for number, call in reversed(list(enumerate(calls, 1)))}
    last = {call.name: number for number, call in enumerate(calls, 1)}
    counts = Counter(call.name for call in calls)
    found = [(1, number) for number in first.values()]
    found += [(counts[name], number) for name, number in last.items() if number != first[name]]
    return [(rank, Fault(number, errno.ENOMEM, name=calls[number - 1].name)) for rank, number in found]


def kind_of(call: Call) -> tuple[str, str]:
    """What calls of one kind have in common: their name and the file, whatever numbers it has, or the lines of code."""
    return call.name, re.sub(r"[0-9a-f]{16,}|\.tmp\w+|\d+", "*", call.path)


def sweep(
    servers: Sequence[FaultServer],
    scenario: Scenario,
    folder: Path,
    choose: Callable[[Sequence[Call]], Sequence[Fault]] = faults_of,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Try the faults of a scenario, with the servers side by side.

    Args:
        servers: the servers.
        scenario: the scenario, which each server runs in a folder of its own.
        folder: for all files.
        choose: the faults that are tried, given the calls of the undisturbed run.
        report: called with each outcome.
    """
    folders = [folder / f"server-{number}" for number in range(len(servers))]
    for one in folders:
        one.mkdir()
    with ThreadPoolExecutor(len(servers)) as pool:
        sweeps = list(pool.map(lambda server, one: Sweep(server, scenario, one), servers, folders))
        faults = choose(sweeps[0].calls)

        def try_share(number: int) -> list[Outcome]:
            outcomes = []
            for fault in faults[number :: len(sweeps)]:
                outcomes.append(sweeps[number].try_fault(fault))
                report(outcomes[-1])
            return outcomes

        return [outcome for outcomes in pool.map(try_share, range(len(sweeps))) for outcome in outcomes]


def sweep_and_report(
    servers: Sequence[FaultServer],
    scenario: Scenario,
    folder: Path,
    show: Callable[[str], None],
) -> list[Outcome]:
    """All outcomes; what has failed, and each problem when it is found, goes to standard output.

    Args:
        servers: the servers.
        scenario: the scenario.
        folder: for all files.
        show: called with a line about how far it is, once in `SHOWN_EVERY_S`.
    """
    progress = Progress()

    def choose(calls: Sequence[Call]) -> Sequence[Fault]:
        faults = faults_of(calls)
        progress.begin(len(faults))
        return faults

    def report(outcome: Outcome) -> None:
        if outcome.problem is not None:
            sys.stdout.write(f"{outcome.problem}\n")
        line = progress.line_after(outcome)
        if line is not None:
            show(line)

    outcomes = sweep(servers, scenario, folder.resolve(), choose, report)
    names = Counter(outcome.call.name.partition(" ")[0] for outcome in outcomes if outcome.call is not None)
    codes = Counter(outcome.code for outcome in outcomes)
    sys.stdout.write(f"{len(outcomes)} faults; exit codes {dict(codes)}; calls {dict(names.most_common())}\n")
    return outcomes


class Progress:
    """How many faults have been tried, for people who wait for hours."""

    def __init__(self) -> None:
        self._lock, self._n, self._n_problems, self._of = threading.Lock(), 0, 0, 0

    def begin(self, of: int) -> None:
        """From now on so many are to be tried."""
        self._of, self._start = of, time.monotonic()
        self._shown = self._start

    def line_after(self, outcome: Outcome) -> str | None:
        """A line about all so far, if the last one was some time ago; from any thread."""
        with self._lock:
            now = time.monotonic()
            self._n += 1
            self._n_problems += outcome.problem is not None
            if now - self._shown < SHOWN_EVERY_S:
                return None
            self._shown = now
            rate = self._n / (now - self._start)
            left = timedelta(seconds=round((self._of - self._n) / rate))
            fell = f", {self._n_problems:,} not as promised" if self._n_problems else ""
            return f"{self._n:,} of {self._of:,} faults{fell}; {60 * rate:.0f} a minute, {left} left"


def problems(outcomes: Iterable[Outcome]) -> list[str]:
    """The problems of the outcomes that have one."""
    return [outcome.problem for outcome in outcomes if outcome.problem is not None]


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())
