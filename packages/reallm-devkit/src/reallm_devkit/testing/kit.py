"""`Kit`, the base class of all kits: inputs as attributes, cases, and a pytest test for each check.

pytest is imported only inside of the tests, so that a kit can run without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from reallm.errors import ConfigError, ReallmError, did_you_mean
from reallm_devkit.testing.checks import Check, CheckFailed, Failure, Skipped
from reallm_devkit.testing.report import Report, Result, Status
from reallm_devkit.testing.source import innermost_line

if TYPE_CHECKING:
    from reallm.plugins.loader import Offer

S = TypeVar("S")


GENERATED = "reallm_generated"
"""Marks generated test methods, which a subclass generates again from its own checks."""


class Kit(Generic[S]):
    """The checks of one kind of plugin. A subclass whose name begins with `Test` is a test suite.

    Each of its `checks` becomes a method `test_<check>`, including checks that the subclass adds: `checks =
    (*DatasetKit.checks, my_check)`. A test method that the subclass defines itself is kept.
    """

    kind: ClassVar[str]
    """The kind of plugin, such as `dataset`."""

    checks: ClassVar[tuple[Check[Any], ...]] = ()
    """The checks, in the order in which they run."""

    has_cases: ClassVar[bool] = False
    """Whether each test is parametrized over `cases()`."""

    skip: ClassVar[Mapping[str, str]] = {}
    """Checks that do not apply to this plugin -> the reason, shown in reports: `{"run-folder": "has a server"}`."""

    _runs: ClassVar[dict[str, CaseRun]] = {}
    """Case -> its results so far, which the tests of this class share."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._runs = {}
        for check in cls.checks:
            if not hasattr(cls, check.test_name) or hasattr(getattr(cls, check.test_name), GENERATED):
                setattr(cls, check.test_name, _make_test(check, has_case=cls.has_cases))

    @classmethod
    def of(cls, **inputs: Any) -> Self:
        """Make a kit with these inputs: the public attributes that a subclass would set."""
        kit = cls()
        for name, value in inputs.items():
            assert hasattr(cls, name), f"{cls.__name__} has no input '{name}'"
            setattr(kit, name, value)
        return kit

    @classmethod
    def from_command(cls, offer: Offer, arguments: Sequence[str], checkpoint: Path | None) -> Self:
        """Make the kit for a command line of `reallm plugins check`.

        Args:
            offer: the plugin's offer that is to be checked.
            arguments: arguments `key=value`, as typed.
            checkpoint: the real checkpoint that `--checkpoint` names, if any.

        Raises:
            ReallmError: an argument is wrong or missing; the message names the right one.
        """
        raise NotImplementedError

    def title(self) -> str:
        """The name of the plugin under test."""
        raise NotImplementedError

    def provided_by(self) -> str:
        """Distribution and version of the plugin; empty if it is not installed."""
        return ""

    def cases(self) -> Sequence[str]:
        """Names of the cases; must be cheap."""
        return ("",)

    def subject(self, case: str) -> S:
        """Make the subject of a case, which the checks are called with.

        Raises:
            ReallmError: if the plugin cannot be found or an input is wrong.
        """
        raise NotImplementedError

    def module(self, subject: S) -> str:
        """The module of the plugin's code, whose lines are looked for in tracebacks."""
        raise NotImplementedError

    def source_location(self, subject: S) -> str:
        """The location of the plugin's source, for exceptions whose traceback has no line of it."""
        return ""

    def run(self, progress: Callable[[Result], None] = lambda _: None) -> Report:
        """Run all checks; see `reallm_devkit.run`."""
        return run(self, progress)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Parametrize each test over the cases (a hook of pytest)."""
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases())

    def _assert_passes(self, check: Check[Any], case: str) -> None:
        """Pass, fail or skip a pytest test as the check does, with its message and without a traceback."""
        import pytest

        message = ""
        try:
            if case not in self._runs:
                self._runs[case] = CaseRun(self, case)
        except ReallmError as error:
            message = str(error)
        if message:  # outside of the handler, or pytest would show the error twice
            pytest.fail(message, pytrace=False)
        result = self._runs[case].result(check)
        if result.status == "failed":
            pytest.fail(str(result), pytrace=False)
        elif result.status == "skipped":
            pytest.skip(f"{result.label}: {result.detail}")


def _make_test(check: Check[Any], *, has_case: bool) -> Callable[..., None]:
    def test(self: Kit[Any]) -> None:
        self._assert_passes(check, "")

    def test_of_case(self: Kit[Any], case: str) -> None:
        self._assert_passes(check, case)

    function: Callable[..., None] = test_of_case if has_case else test
    function.__name__, function.__doc__ = check.test_name, check.promise
    setattr(function, GENERATED, True)
    return function


Outcome = tuple[Status, str, Failure | None]


class CaseRun:
    """Runs the checks of one case of a kit, each at most once: on request, or because another one needs it.

    Raises:
        ReallmError: if the subject cannot be made: the plugin is unknown, or an input is wrong.
    """

    def __init__(self, kit: Kit[Any], case: str) -> None:
        names = [check.name for check in kit.checks]
        for name in kit.skip:
            if name not in names:
                hint = did_you_mean(name, names) or f"; checks: {', '.join(names)}"
                raise ConfigError(f"skip has '{name}', which is not a check{hint}")
        self._kit, self._case = kit, case
        self._subject = kit.subject(case)
        self._results: dict[str, Result] = {}

    def result(self, check: Check[Any]) -> Result:
        """The result of a check, which runs now, after those it needs, unless it has run before."""
        if check.name not in self._results:
            needed = [self.result(need) for need in check.needs]
            begin = time.perf_counter()
            status, detail, failure = self._skip(check, needed) or self._run(check)
            seconds = time.perf_counter() - begin
            result = Result(check.name, check.promise, status, detail, seconds, failure, self._case)
            self._results[check.name] = result
        return self._results[check.name]

    def _skip(self, check: Check[Any], needed: list[Result]) -> Outcome | None:
        if check.name in self._kit.skip:
            return "skipped", self._kit.skip[check.name], None
        for need in needed:
            if need.status == "failed":
                return "skipped", f"comes when '{need.check}' passes", None
            if need.status == "skipped":
                return "skipped", need.detail, None
        return None

    def _run(self, check: Check[Any]) -> Outcome:
        try:
            return "passed", check.function(self._subject), None
        except Skipped as reason:
            return "skipped", str(reason), None
        except CheckFailed as error:
            failure = error.failure
        except (Exception, SystemExit) as error:  # the plugin's code may raise anything
            module, location = self._kit.module(self._subject), self._kit.source_location(self._subject)
            failure = _failure_from_exception(error, check, module, location)
        return "failed", failure.seen, failure


def run(kit: Kit[Any], progress: Callable[[Result], None] = lambda _: None) -> Report:
    """Run all checks of a kit for all its cases.

    Args:
        kit: the checks and their inputs.
        progress: called with each result as soon as it is known.

    Raises:
        ReallmError: if the plugin cannot be found, or an input of the kit is wrong.
    """
    results: list[Result] = []
    for case in kit.cases():
        case_run = CaseRun(kit, case)
        for check in kit.checks:
            results.append(case_run.result(check))
            progress(results[-1])
    return Report(kit.kind, kit.title(), kit.provided_by(), tuple(results))


def _failure_from_exception(error: BaseException, check: Check[Any], module: str, location: str) -> Failure:
    message = " ".join(str(error).split())
    seen = message if isinstance(error, ReallmError) else f"{type(error).__name__}{': ' if message else ''}{message}"
    return Failure(
        check.promise, f"raised {seen}", look_at=innermost_line(error, module) or location or innermost_line(error)
    )
