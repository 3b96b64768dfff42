"""What the kits of all kinds have in common: inputs as attributes, cases, and a pytest test for each check.

pytest is imported by the tests alone, which it runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from reallm.errors import ConfigError, ReallmError, did_you_mean
from reallm_devkit.testing.checks import Check, CheckFailed, Failure, Skipped
from reallm_devkit.testing.report import Report, Result, Status
from reallm_devkit.testing.source import innermost

if TYPE_CHECKING:
    from reallm.plugins.loader import Offer

S = TypeVar("S")


MADE = "reallm_made"
"""Marks the test methods that were made here, which a subclass may make anew."""


class Kit(Generic[S]):
    """The checks of one kind of plugin. A subclass whose name begins with `Test` is a test suite.

    Each check of `checks` is a method `test_<check>`, also those of an author's own: `checks = (*DatasetKit.checks,
    my_check)`. A method that is there already is left alone.
    """

    kind: ClassVar[str]
    """Of plugin, such as `dataset`."""

    checks: ClassVar[tuple[Check[Any], ...]] = ()
    """In the order in which they run."""

    has_cases: ClassVar[bool] = False
    """Whether there are several subjects, so that each test is run for each of `cases()`."""

    skip: ClassVar[Mapping[str, str]] = {}
    """Checks that are not for this plugin -> the reason, which reports give: `{"run-folder": "has a server"}`."""

    _runs: ClassVar[dict[str, CaseRun]] = {}
    """Of this very class, by case: what the tests of a suite have made already."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._runs = {}
        for check in cls.checks:
            if not hasattr(cls, check.test_name) or hasattr(getattr(cls, check.test_name), MADE):
                setattr(cls, check.test_name, _test(check, has_case=cls.has_cases))

    @classmethod
    def of(cls, **inputs: Any) -> Self:
        """A kit with these inputs, the public attributes of the class, in the place of those a subclass would set."""
        kit = cls()
        for name, value in inputs.items():
            assert hasattr(cls, name), f"{cls.__name__} has no input '{name}'"
            setattr(kit, name, value)
        return kit

    @classmethod
    def from_command(cls, offer: Offer, arguments: Sequence[str], checkpoint: Path | None) -> Self:
        """The kit that `reallm plugins check` asks for.

        Args:
            offer: what is to be checked.
            arguments: as typed, `key=value`.
            checkpoint: a real one, where `--checkpoint` names it.

        Raises:
            ReallmError: an argument that is wrong or missing: one line with the right one.
        """
        raise NotImplementedError

    def title(self) -> str:
        """The name of what is checked."""
        raise NotImplementedError

    def provided_by(self) -> str:
        """Distribution and version of what is checked, if it is installed."""
        return ""

    def cases(self) -> Sequence[str]:
        """Names of the subjects; cheap to ask for."""
        return ("",)

    def subject(self, case: str) -> S:
        """What the checks look at, made of the inputs.

        Raises:
            ReallmError: if the plugin cannot be found or an input is wrong.
        """
        raise NotImplementedError

    def module(self, subject: S) -> str:
        """The module of the plugin's own code, by which its lines are found in a traceback."""
        raise NotImplementedError

    def place(self, subject: S) -> str:
        """Where the plugin is written, for an exception that comes from no line of its own."""
        return ""

    def run(self, progress: Callable[[Result], None] = lambda _: None) -> Report:
        """Make all checks; see `reallm_devkit.run`."""
        return run(self, progress)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Have pytest run each test for each case."""
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases())

    def _assert_passes(self, check: Check[Any], case: str) -> None:
        """End a test as the check ends, with its words and without a traceback."""
        import pytest

        wrong = ""
        try:
            if case not in self._runs:
                self._runs[case] = CaseRun(self, case)
        except ReallmError as error:
            wrong = str(error)
        if wrong:  # not in the handler, or the error would be shown twice
            pytest.fail(wrong, pytrace=False)
        result = self._runs[case].result(check)
        if result.status == "failed":
            pytest.fail(str(result), pytrace=False)
        elif result.status == "skipped":
            pytest.skip(f"{result.label}: {result.detail}")


def _test(check: Check[Any], *, has_case: bool) -> Callable[..., None]:
    def test(self: Kit[Any]) -> None:
        self._assert_passes(check, "")

    def test_of_case(self: Kit[Any], case: str) -> None:
        self._assert_passes(check, case)

    function: Callable[..., None] = test_of_case if has_case else test
    function.__name__, function.__doc__ = check.test_name, check.promise
    setattr(function, MADE, True)
    return function


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
