"""`RewardPool`: calls reward functions in processes, so that one that hangs costs no more than its answer."""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from reallm.errors import RewardError
from reallm.rewards.outcome import Outcome
from reallm.rewards.process import EndedError, TimedOutError, WorkerProcess
from reallm.rewards.resolve import RewardFunction
from reallm.seeding import derive_seed


@dataclass(frozen=True)
class RewardCall:
    """The answers to a prompt, to be rewarded by one function."""

    function: int
    """Which of the functions."""
    arguments: Mapping[str, Sequence[Any]]
    """`prompts`, `completions`, `completion_ids` and columns: JSON values, one for each answer."""
    row: str
    """Id of the row, for errors."""
    seed: int
    """Seed of the function's random numbers."""

    def __len__(self) -> int:
        return len(self.arguments["completions"])

    def of_answer(self, index: int) -> RewardCall:
        """The call for one of the answers alone."""
        arguments = {name: [values[index]] for name, values in self.arguments.items()}
        return RewardCall(self.function, arguments, self.row, derive_seed(self.seed, index))


class RewardPool:
    """Processes that call reward functions; they are started when they are first needed, and end with this one.

    Args:
        functions: the functions.
        timeout_s: seconds after which a call is ended.
        n_processes: processes, at most; None: one for each core.
    """

    def __init__(self, functions: Sequence[RewardFunction], timeout_s: float, n_processes: int | None = None) -> None:
        self._functions = list(functions)
        self._timeout_s = timeout_s
        self._n_processes = n_processes or len(os.sched_getaffinity(0))
        self._idle: queue.LifoQueue[WorkerProcess | None] = queue.LifoQueue()
        self._n_places = 0

    def rewards(self, calls: Sequence[RewardCall]) -> list[Outcome]:
        """The outcomes of some calls, in their order. They do not depend on the number of processes.

        If a call fails, each of its answers is tried alone, to find those that it fails for; these calls too are made
        side by side. So n answers cost at most two time-outs with n processes, and ceil(n / processes) + 1 with fewer.

        Raises:
            RewardError: a function cannot be imported, or what it returned are no rewards; names it and the row.
        """
        outcomes = self._all(calls)
        failed = [i for i, outcome in enumerate(outcomes) if len(calls[i]) > 1 and outcome.failures[0] is not None]
        alone = iter(self._all([calls[i].of_answer(index) for i in failed for index in range(len(calls[i]))]))
        for i in failed:
            outcomes[i] = sum((next(alone) for _ in range(len(calls[i]))), Outcome([], []))
        return outcomes

    def _all(self, calls: Sequence[RewardCall]) -> list[Outcome]:
        """The outcomes of calls that are each made once, side by side."""
        if not calls:
            return []
        n_needed = min(self._n_processes, len(calls))
        for _ in range(self._n_places, n_needed):
            self._idle.put(None)  # a process yet to be started
        self._n_places = max(self._n_places, n_needed)
        threads = ThreadPoolExecutor(n_needed, "reward")
        try:
            return list(threads.map(self._tried, calls))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            self.close()
            raise
        finally:
            threads.shutdown(wait=False)

    def close(self) -> None:
        """End the processes that have nothing to do; the others end when their call does."""
        for _ in range(self._idle.qsize()):
            process = self._idle.get_nowait()
            if process is not None:
                process.end()
            self._idle.put(None)

    def _tried(self, call: RewardCall) -> Outcome:
        """The outcome of a call that is made once; of a failed one, that of one answer."""
        process = self._idle.get()
        try:
            if process is None:
                process = WorkerProcess([one.location for one in self._functions])
            asked = {"function": call.function, "arguments": dict(call.arguments), "seed": call.seed}
            found = process.ask({**asked, "timeout_s": self._timeout_s}, self._timeout_s)
        except (TimedOutError, EndedError) as error:
            if process is None:
                raise RewardError(
                    f"the process for reward functions did not start: {error or 'importing them takes too long'}"
                ) from error
            process.end()
            process = None
            if isinstance(error, TimedOutError):
                return Outcome.failed("timeout", f"no answer within {self._timeout_s:g} s")
            return Outcome.failed("error", str(error))
        finally:
            self._idle.put(process)
        if "trace" in found:
            return Outcome.failed("error", found["trace"])
        if "invalid" in found:
            name = self._functions[call.function].name
            which = "" if found["index"] is None else f", completion {found['index'] + 1} of {len(call)}"
            raise RewardError(f"reward function '{name}' {found['invalid']} (row {call.row}{which})")
        return Outcome(found["rewards"], [None] * len(call))
