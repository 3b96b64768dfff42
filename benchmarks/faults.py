"""Faults: single calls of the system, or allocations of tensors, fail; do commands go on or end with one line?

Small runs, resumed runs and other commands are run again and again, each time with one fault: an error of a disk, a
full disk, a signal, half a read or write, or a lack of memory. After an error the same command is run without it, and
must leave the same bits. Faults of kinds of calls (name and file, or lines of code) that have not failed in any
scenario come first, then those that have not in their own; among them they are drawn, so that a few minutes try some of
each scenario, and others with another `--seed`. For each fault that is not as promised, what was printed is shown.
Linux with `cc` only.

`io_faults_as_promised` and `memory_faults_as_promised` are the shares of those tried; `io_kinds_tried` and
`memory_kinds_tried` the shares that were tried of the faults of the first call of each kind in each scenario, and
`io_distinct_kinds_tried` and `memory_distinct_kinds_tried` of the first in any scenario.

    python benchmarks/faults.py --json figures.json
    python benchmarks/faults.py --minutes 5 --seed 2 training resuming
    python benchmarks/faults.py --minutes 300 --tried tried.jsonl

The last, again and again, tries all in the end: what `tried.jsonl` says to have held is not tried again, and counts.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TextIO

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from common import machine, parser, write_json

sys.path.append(str(Path(__file__).parent.parent))
sys.path.append(str(Path(__file__).parent.parent / "tools"))
from tests.helpers.io_faults import Call, Fault, FaultServer
from tests.helpers.io_faults.inputs import make_inputs
from tests.helpers.io_faults.scenarios import SCENARIOS
from tests.helpers.io_faults.sweep import Outcome, Progress, Sweep, kind_of, ranked_faults_of


@dataclass(frozen=True)
class Case:
    """A fault of a scenario."""

    scenario: str
    of_memory: bool
    fault: Fault
    kind: tuple[str, str]
    """That of its call, see `kind_of`."""
    rank: int
    """How many calls of its kind there are in the scenario up to this one."""
    is_first: bool
    """Whether no scenario before has such a fault of such a call."""

    @property
    def key(self) -> str:
        """What names it in other runs, in which calls have other numbers."""
        fault = self.fault
        return " ".join(map(str, (self.scenario, self.of_memory, *self.kind, self.rank, fault.error, fault.mode)))


class Worker:
    """A server with a sweep of each scenario that it has been given."""

    def __init__(self, server: FaultServer, inputs: Path, folder: Path) -> None:
        self._server, self._inputs, self._folder = server, inputs, folder
        self._sweeps: dict[tuple[str, bool], Sweep] = {}

    def sweep(self, name: str, of_memory: bool) -> Sweep:
        """The sweep of a scenario, which runs it undisturbed the first time."""
        key = (name, of_memory)
        if key not in self._sweeps:
            folder = self._folder / f"{name} {'memory' if of_memory else 'io'}".replace(" ", "-").replace(",", "")
            folder.mkdir(parents=True)
            scenario = replace(SCENARIOS[name](self._inputs), of_memory=of_memory)
            self._sweeps[key] = Sweep(self._server, scenario, folder)
        return self._sweeps[key]

    def run(self, case: Case) -> Outcome:
        """Try a fault."""
        return self.sweep(case.scenario, case.of_memory).try_fault(case.fault)


def main() -> None:
    """Try faults until the time is over, print a table, and write the figures if asked to; exit with 1 if any fell."""
    arguments_of = parser(str(__doc__).splitlines()[0])
    arguments_of.add_argument("--minutes", type=float, help="how long in all; by default 60, with --quick 6")
    arguments_of.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="commands at the same time")
    arguments_of.add_argument("--seed", type=int, default=0, help="another order of faults alike in rank; default 0")
    arguments_of.add_argument(
        "--tried", type=Path, metavar="FILE", help="what became of each fault; those that held before are passed over"
    )
    arguments_of.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="beginnings of names; by default all")
    arguments = arguments_of.parse_args()
    end = time.monotonic() + 60 * (arguments.minutes or (6 if arguments.quick else 60))
    chosen = [name for name in SCENARIOS if not arguments.scenarios or name.startswith(tuple(arguments.scenarios))]
    print(f"{machine()}; torch {torch.__version__}")
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-"))).resolve()
        servers = [stack.enter_context(FaultServer()) for _ in range(arguments.processes)]
        inputs = make_inputs(servers, top / "inputs")
        workers = [Worker(server, inputs, top / f"worker-{i}") for i, server in enumerate(servers)]
        cases = all_cases(workers, chosen, top, Random(arguments.seed))
        n_kinds, n_distinct = sum(case.rank == 1 for case in cases), sum(case.is_first for case in cases)
        print(f"{len(cases):,} faults, {n_kinds:,} of the first call of each kind, {n_distinct:,} of these unlike all")
        before = read_tried(arguments.tried)
        held = {key for key, outcome in before.items() if outcome.problem is None}
        left = [case for case in cases if case.key not in held]
        left.sort(key=lambda case: case.key not in before)  # what fell is tried again first
        tried = [(case, before[case.key]) for case in cases if case.key in held]
        with open_tried(arguments.tried) as file:
            tried += try_cases(workers, left, end, file)
    print(as_table(tried))
    write_json(arguments.json, figures(tried, cases))
    sys.exit(any(outcome.problem is not None for _, outcome in tried))


def all_cases(workers: list[Worker], names: list[str], top: Path, random: Random) -> list[Case]:
    """All faults of scenarios, those of kinds of calls that come first before, and else in an order that is drawn."""
    keys = [(name, of_memory) for name in names for of_memory in (False, True)]
    calls: dict[tuple[str, bool], Sequence[Call]] = {}

    def collect(worker: Worker, mine: list[tuple[str, bool]]) -> None:
        for key in mine:
            calls[key] = worker.sweep(*key).calls

    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(collect, workers, [keys[i :: len(workers)] for i in range(len(workers))]))
    seen: set[tuple[object, ...]] = set()
    cases: list[Case] = []
    for name, of_memory in sorted(keys, key=lambda key: len(calls[key])):  # what many do is tried in the shortest
        for rank, fault in ranked_faults_of(calls[name, of_memory]):
            call = calls[name, of_memory][fault.number - 1]
            path = call.path.removeprefix(f"{top}/").rpartition("/case/")[2]  # in whichever folder its command runs
            kind = kind_of(Call(call.name, path))
            unlike = (kind, fault.error, fault.mode)
            cases.append(Case(name, of_memory, fault, kind, rank, unlike not in seen))
            seen.add(unlike)
    random.shuffle(cases)
    return sorted(cases, key=lambda case: (not case.is_first, case.rank))


def read_tried(file: Path | None) -> dict[str, Outcome]:
    """What became of cases when they were tried last, by their keys."""
    lines = file.read_text().splitlines() if file is not None and file.exists() else []
    return {line["fault"]: Outcome(Fault(0), None, line["code"], line["problem"]) for line in map(json.loads, lines)}


def open_tried(file: Path | None) -> TextIO:
    """The file to add to."""
    return (file or Path(os.devnull)).open("a")


def try_cases(workers: list[Worker], cases: list[Case], end: float, file: TextIO) -> list[tuple[Case, Outcome]]:
    """Try the cases in turn, side by side, until they or the time end.

    What became of each is a line of `file`; problems are printed when they are found.
    """
    rest, lock, progress = iter(cases), threading.Lock(), Progress()
    tried: list[tuple[Case, Outcome]] = []
    progress.begin(len(cases))

    def work(worker: Worker) -> None:
        while time.monotonic() < end:
            with lock:
                case = next(rest, None)
            if case is None:
                return
            outcome = worker.run(case)
            with lock:
                tried.append((case, outcome))
                line = {"fault": case.key, "code": outcome.code, "problem": outcome.problem}
                print(json.dumps(line), file=file, flush=True)
                if outcome.problem is not None:
                    print(f"\n{case.scenario}: {outcome.problem}", flush=True)
                if (shown := progress.line_after(outcome)) is not None:
                    print(shown, flush=True)

    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(work, workers))
    return tried


def as_table(tried: list[tuple[Case, Outcome]]) -> str:
    """What became of the faults of each scenario."""
    lines = [f"{'':32}{'faults':>8}{'went on':>9}{'one line':>10}{'not as promised':>17}"]
    for of_memory in (False, True):
        for name in dict.fromkeys(case.scenario for case, _ in tried):
            mine = [found for case, found in tried if (case.scenario, case.of_memory) == (name, of_memory)]
            fell = sum(found.problem is not None for found in mine)
            went_on = sum(found.problem is None and found.code == 0 for found in mine)
            title = f"{name} ({'memory' if of_memory else 'I/O'})"
            if mine:
                lines.append(f"{title:32}{len(mine):8,}{went_on:9,}{len(mine) - went_on - fell:10,}{fell:17,}")
    return "\n".join(lines)


def figures(tried: list[tuple[Case, Outcome]], cases: list[Case]) -> dict[str, float]:
    """The flat figures."""
    found: dict[str, float] = {}
    for name, of_memory in (("io", False), ("memory", True)):
        mine = [(case, outcome) for case, outcome in tried if case.of_memory == of_memory]
        if not mine:
            continue
        found[f"{name}_faults_tried"] = len(mine)
        of = [case for case in cases if case.of_memory == of_memory]
        n_firsts = sum(case.is_first for case in of)
        found[f"{name}_kinds_tried"] = sum(case.rank == 1 for case, _ in mine) / sum(case.rank == 1 for case in of)
        found[f"{name}_distinct_kinds_tried"] = sum(case.is_first for case, _ in mine) / n_firsts
        found[f"{name}_faults_as_promised"] = sum(outcome.problem is None for _, outcome in mine) / len(mine)
        found[f"{name}_faults_as_promised_bar"] = 1.0
    return found


if __name__ == "__main__":
    main()
