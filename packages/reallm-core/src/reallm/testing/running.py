"""Runs the checks of a kit. A check that raises, whatever it is, ends in a result and never in a traceback."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reallm.errors import ConfigError, ReallmError, did_you_mean
from reallm.testing.checks import Check, CheckFailed, Failure, Skipped
from reallm.testing.report import Report, Result, Status
from reallm.testing.source import innermost

if TYPE_CHECKING:
    from reallm.testing.kit import Kit

Outcome = tuple[Status, str, Failure | None]


class CaseRun:
    """The checks of one case of a kit, each made once, when it is asked for or another one needs it.

    Raises:
        ReallmError: if the subject cannot be made: the plugin is unknown, or an input is wrong.
    """

    def __init__(self, kit: Kit[Any], case: str) -> None:
        names = [check.name for check in kit.checks]
        for name in kit.skip:
            if name not in names:
                hint = did_you_mean(name, names) or f"; checks: {', '.join(names)}"
                raise ConfigError(f"skip has '{name}', which is no check{hint}")
        self._kit, self._case = kit, case
        self._subject = kit.subject(case)
        self._results: dict[str, Result] = {}

    def result(self, check: Check[Any]) -> Result:
        """What came of the check, and of those it needs, which are made first."""
        if check.name not in self._results:
            needed = [self.result(need) for need in check.needs]
            begin = time.perf_counter()
            status, detail, failure = self._not_made(check, needed) or self._made(check)
            seconds = time.perf_counter() - begin
            result = Result(check.name, check.promise, status, detail, seconds, failure, self._case)
            self._results[check.name] = result
        return self._results[check.name]

    def _not_made(self, check: Check[Any], needed: list[Result]) -> Outcome | None:
        if check.name in self._kit.skip:
            return "skipped", self._kit.skip[check.name], None
        for need in needed:
            if need.status == "failed":
                return "skipped", f"comes when '{need.check}' passes", None
            if need.status == "skipped":
                return "skipped", need.detail, None
        return None

    def _made(self, check: Check[Any]) -> Outcome:
        try:
            return "passed", check.function(self._subject), None
        except Skipped as reason:
            return "skipped", str(reason), None
        except CheckFailed as error:
            failure = error.failure
        except (Exception, SystemExit) as error:  # the plugin's code ran here, and whatever it raises is its failure
            failure = _of_exception(error, check, self._kit.module(self._subject), self._kit.place(self._subject))
        return "failed", failure.seen, failure


def run(kit: Kit[Any], progress: Callable[[Result], None] = lambda _: None) -> Report:
    """Make all checks of a kit, for all its cases.

    Args:
        kit: the checks and what they are about.
        progress: called with each result as soon as it is there.

    Raises:
        ReallmError: if what is to be checked cannot be found, or an input of the kit is wrong.
    """
    results: list[Result] = []
    for case in kit.cases():
        of_case = CaseRun(kit, case)
        for check in kit.checks:
            results.append(of_case.result(check))
            progress(results[-1])
    return Report(kit.kind, kit.title(), kit.provided_by(), tuple(results))


def _of_exception(error: BaseException, check: Check[Any], module: str, place: str) -> Failure:
    message = " ".join(str(error).split())
    seen = message if isinstance(error, ReallmError) else f"{type(error).__name__}{': ' if message else ''}{message}"
    return Failure(check.promise, f"raised {seen}", look_at=innermost(error, module) or place or innermost(error))
