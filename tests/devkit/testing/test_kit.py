"""The frame of the conformance kit: how checks end, and what reports and test suites make of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from reallm.errors import ConfigError, ReallmError
from reallm_devkit import Check, CheckFailed, Kit, Skipped, check
from tests.helpers.imports import imported_by
from workspace import ROOT

pytest_plugins = ["pytester"]


@check()
def even(subject: int) -> str:
    """the number is even"""
    if subject % 2:
        raise CheckFailed("an even number", f"the number {subject}", where="in its last\nbit", look_at="numbers.py:3")
    return f"{subject} is even"


@check(needs=[even])
def half(subject: int) -> str:
    """half of the number is a whole number"""
    return str(subject // 2)


@check()
def small(subject: int) -> str:
    """the number is below ten"""
    if subject > 10:
        raise Skipped("give a number of at most 10")
    return "small"


def divide(number: int) -> float:
    return 12 / number


@check()
def divides_twelve(subject: int) -> str:
    """twelve is divided by it"""
    return str(divide(subject))


@check()
def welcome(subject: int) -> str:
    """the number is welcome"""
    if subject == 8:
        raise ConfigError("8 is not welcome")
    if subject == 9:
        raise SystemExit("9 ends everything")
    return "welcome"


class NumberKit(Kit[int]):
    kind = "number"
    checks: tuple[Check[int], ...] = (even, half, small, divides_twelve, welcome)
    number = 4

    def title(self) -> str:
        return str(self.number)

    def subject(self, case: str) -> int:
        if self.number < 0:
            raise ReallmError(f"{self.number} is negative; give a number from 0")
        return self.number

    def module(self, subject: int) -> str:
        return __name__


class ManyNumbersKit(NumberKit):
    has_cases = True
    numbers: tuple[int, ...] = (2, 3)

    def cases(self) -> Sequence[str]:
        return [str(number) for number in self.numbers]

    def subject(self, case: str) -> int:
        return int(case)


def test_what_passes_says_what_was_seen() -> None:
    report = NumberKit().run()
    assert report.passed
    assert [(result.check, result.status, result.detail) for result in report.results] == [
        ("even", "passed", "4 is even"),
        ("half", "passed", "2"),
        ("small", "passed", "small"),
        ("divides-twelve", "passed", "3.0"),
        ("welcome", "passed", "welcome"),
    ]


def test_a_failure_says_what_was_expected_what_was_seen_where_and_what_to_look_at() -> None:
    report = NumberKit.of(number=3).run()
    assert not report.passed
    (failed,) = report.failed
    assert str(failed).splitlines() == [
        "even: the number is even",
        "  expected  an even number",
        "  seen      the number 3",
        "  where     in its last bit",
        "  look at   numbers.py:3",
    ]
    assert "3 passed, 1 failed, 1 skipped in " in str(report)


def test_a_check_whose_need_failed_is_skipped_and_says_so() -> None:
    results = {result.check: result for result in NumberKit.of(number=3).run().results}
    assert (results["half"].status, results["half"].detail) == ("skipped", "comes when 'even' passes")


def test_a_check_whose_need_was_skipped_is_skipped_for_its_reason() -> None:
    results = {result.check: result for result in NumberKit.of(skip={"even": "has its reasons"}).run().results}
    assert results["even"].status == results["half"].status == "skipped"
    assert results["even"].detail == results["half"].detail == "has its reasons"


def test_skipping_says_what_would_have_the_check_made() -> None:
    results = {result.check: result for result in NumberKit.of(number=12).run().results}
    assert (results["small"].status, results["small"].detail) == ("skipped", "give a number of at most 10")


def test_an_exception_of_the_plugin_is_a_failure_with_the_line_it_comes_from() -> None:
    (failed,) = NumberKit.of(number=0).run().failed
    assert failed.failure is not None
    assert failed.failure.expected == "twelve is divided by it"
    assert failed.failure.seen == "raised ZeroDivisionError: division by zero"
    line = divide.__code__.co_firstlineno + 1
    assert failed.failure.look_at.endswith(f"test_kit.py:{line} (divide)")


def test_an_error_that_is_a_message_is_told_without_its_type_and_nothing_ends_the_program() -> None:
    (failed,) = NumberKit.of(number=8).run().failed
    assert failed.detail == "raised 8 is not welcome"
    failed = NumberKit.of(number=9).run().failed[-1]
    assert failed.detail == "raised SystemExit: 9 ends everything"


def test_a_wrong_input_is_no_failure_of_the_plugin() -> None:
    with pytest.raises(ReallmError, match="give a number from 0"):
        NumberKit.of(number=-1).run()
    with pytest.raises(ConfigError, match="skip has 'haf', which is not a check; did you mean 'half'?"):
        NumberKit.of(skip={"haf": "mistyped"}).run()


def test_results_come_as_soon_as_they_are_there_and_for_each_case() -> None:
    seen: list[str] = []
    report = ManyNumbersKit().run(lambda result: seen.append(result.label))
    assert seen == [result.label for result in report.results]
    assert seen[:2] == ["even[2]", "half[2]"]
    assert [result.label for result in report.failed] == ["even[3]"]


def test_a_report_as_json() -> None:
    found = NumberKit.of(number=3).run().as_json()
    assert (found["kind"], found["name"], found["passed"], found["provided_by"]) == ("number", "3", False, None)
    assert found["counts"] == {"passed": 3, "failed": 1, "skipped": 1}
    first = found["results"][0]
    assert first.pop("seconds") >= 0
    assert first == {
        "check": "even",
        "promise": "the number is even",
        "status": "failed",
        "detail": "the number 3",
        "failure": {
            "expected": "an even number",
            "seen": "the number 3",
            "where": "in its last bit",
            "look_at": "numbers.py:3",
        },
        "case": None,
    }


SUITE = """
from tests.devkit.testing.test_kit import ManyNumbersKit, NumberKit

class TestFour(NumberKit):
    pass

class TestThree(NumberKit):
    number = 3

class TestTwelve(NumberKit):
    number = 12

    def test_half(self):
        assert self.number // 2 == 6

class TestNegative(NumberKit):
    number = -1

class TestMany(ManyNumbersKit):
    pass
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.syspath_prepend(str(ROOT))
    pytester.makepyfile(test_suite=SUITE)
    return pytester


def test_a_class_is_a_suite_with_a_test_for_each_check(suite: pytest.Pytester) -> None:
    suite.inline_run("-k", "TestFour", "-v").assertoutcome(passed=5)


def test_a_failing_test_shows_the_failure_and_no_traceback(suite: pytest.Pytester) -> None:
    done = suite.runpytest("-k", "Three", "-rs")
    done.assert_outcomes(passed=3, failed=1, skipped=1)
    done.stdout.fnmatch_lines(["even: the number is even", "  expected  an even number", "  look at   numbers.py:3"])
    done.stdout.fnmatch_lines(["SKIPPED * half: comes when 'even' passes"])
    done.stdout.no_fnmatch_line("*raise CheckFailed*")
    done.stdout.no_fnmatch_line("*_assert_passes*")


def test_a_test_of_the_authors_own_takes_the_place_of_the_kits(suite: pytest.Pytester) -> None:
    suite.runpytest("-k", "TestTwelve").assert_outcomes(passed=4, skipped=1)


def test_a_wrong_input_is_one_line_in_each_test(suite: pytest.Pytester) -> None:
    done = suite.runpytest("-k", "Negative")
    done.assert_outcomes(failed=5)
    done.stdout.fnmatch_lines(["-1 is negative; give a number from 0"])
    done.stdout.no_fnmatch_line("*raise ReallmError*")
    done.stdout.no_fnmatch_line("*another exception*")


def test_each_case_is_a_test_of_its_own(suite: pytest.Pytester) -> None:
    done = suite.runpytest("-k", "Many", "-v")
    done.assert_outcomes(passed=8, failed=1, skipped=1)
    done.stdout.fnmatch_lines(["*::TestMany::test_even[[]3[]] FAILED*"])


def test_importing_the_kit_brings_neither_pytest_nor_torch() -> None:
    program = "import reallm_devkit as kit; kit.Kit, kit.run, kit.check"
    assert imported_by(program, "pytest", "torch", "transformers") == []
