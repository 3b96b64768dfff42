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
"""

from __future__ import annotations

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

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from common import machine, parser, write_json

sys.path.append(str(Path(__file__).parent.parent))
sys.path.append(str(Path(__file__).parent.parent / "tools"))
from tests.helpers.io_faults import Call, Fault, FaultServer
from tests.helpers.io_faults.more_scenarios import SCENARIOS, make_more_inputs, warm_up
from tests.helpers.io_faults.scenarios import make_small_inputs
from tests.helpers.io_faults.sweep import Outcome, Progress, Sweep, kind_of, ranked_faults_of


@dataclass(frozen=True)
class Case:
    """A fault of a scenario."""

    scenario: str
    of_memory: bool
    rank: int
    """How many calls of its kind there are in the scenario up to this one; 0: it is the first in any scenario."""
    fault: Fault


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
            scenario = SCENARIOS[name](self._server, self._inputs, folder)
            self._sweeps[key] = Sweep(self._server, replace(scenario, of_memory=of_memory), folder)
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
    arguments_of.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="beginnings of names; by default all")
    arguments = arguments_of.parse_args()
    end = time.monotonic() + 60 * (arguments.minutes or (6 if arguments.quick else 60))
    chosen = [name for name in SCENARIOS if not arguments.scenarios or name.startswith(tuple(arguments.scenarios))]
    print(f"{machine()}; torch {torch.__version__}")
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-"))).resolve()
        servers = [stack.enter_context(FaultServer()) for _ in range(arguments.processes)]
        inputs = make_small_inputs(top / "inputs")
        make_more_inputs(servers[0], inputs)
        for number, server in enumerate(servers):
            warm_up(server, inputs, top / f"warm-{number}")
        workers = [Worker(server, inputs, top / f"worker-{i}") for i, server in enumerate(servers)]
        cases = all_cases(workers, chosen, Random(arguments.seed))
        n_kinds, n_distinct = (sum(case.rank <= rank for case in cases) for rank in (1, 0))
        print(f"{len(cases):,} faults, {n_kinds:,} of the first call of each kind, {n_distinct:,} of these unlike all")
        tried = try_cases(workers, cases, end)
    print(as_table(tried))
    write_json(arguments.json, figures(tried, cases))
    sys.exit(any(outcome.problem is not None for _, outcome in tried))


def all_cases(workers: list[Worker], names: list[str], random: Random) -> list[Case]:
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
    for name, of_memory in keys:
        for rank, fault in ranked_faults_of(calls[name, of_memory]):
            call = calls[name, of_memory][fault.number - 1]
            in_any = Call(call.name, call.path.rpartition("/case/")[2])  # the file of its folder, whichever that is
            kind = (*kind_of(in_any), fault.error, fault.mode)
            cases.append(Case(name, of_memory, rank if kind in seen else 0, fault))
            seen.add(kind)
    random.shuffle(cases)
    return sorted(cases, key=lambda case: case.rank)


def try_cases(workers: list[Worker], cases: list[Case], end: float) -> list[tuple[Case, Outcome]]:
    """Try the cases in turn, side by side, until they or the time end; problems are printed when they are found."""
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
                if outcome.problem is not None:
                    print(f"\n{case.scenario}: {outcome.problem}", flush=True)
                line = progress.line_after(outcome)
                if line is not None:
                    print(line, flush=True)

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
        for kinds, rank in (("kinds", 1), ("distinct_kinds", 0)):
            of = sum(case.of_memory == of_memory and case.rank <= rank for case in cases)
            found[f"{name}_{kinds}_tried"] = sum(case.rank <= rank for case, _ in mine) / max(1, of)
        found[f"{name}_faults_as_promised"] = sum(outcome.problem is None for _, outcome in mine) / len(mine)
        found[f"{name}_faults_as_promised_bar"] = 1.0
    return found


if __name__ == "__main__":
    main()
