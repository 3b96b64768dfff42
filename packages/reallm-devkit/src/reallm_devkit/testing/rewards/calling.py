"""Checks of what a reward function returns, and of what it leaves unchanged."""

from __future__ import annotations

import copy
import math
import time
from numbers import Real
from typing import Any

from reallm_devkit.testing.checks import CheckFailed, check
from reallm_devkit.testing.process_state import call_and_compare
from reallm_devkit.testing.rewards.subject import RewardSubject


@check()
def columns(subject: RewardSubject) -> str:
    """the columns that it cannot do without are those that it declares"""
    undeclared = [name for name in subject.needed if name not in subject.spec.columns]
    if undeclared:
        raise CheckFailed(
            f"columns with {', '.join(undeclared)} in its RewardSpec", f"{subject.spec.columns}", look_at=subject.table
        )
    missing = [name for name in subject.spec.columns if not any(name in row for row in subject.rows)]
    if missing:
        raise CheckFailed(f"rows with the column {missing[0]}", "none; give the kit rows that have it")
    return ", ".join(subject.spec.columns) or "none"


@check(needs=[columns])
def values(subject: RewardSubject) -> str:
    """it returns a list with a finite number or None for each completion, also for an empty one"""
    begin = time.perf_counter()
    found = _rewards(subject, subject.arguments())
    seconds = time.perf_counter() - begin
    shown = ", ".join("None" if one is None else f"{one:g}" for one in found)
    return f"{shown}; {seconds / len(found) * 1000:.2g} ms each"


@check(needs=[values])
def messages(subject: RewardSubject) -> str:
    """completions that are messages get the same rewards as their text"""
    _compare(subject, subject.arguments(as_messages=True), "messages")
    return "the same"


@check(needs=[values])
def other_columns(subject: RewardSubject) -> str:
    """columns that it does not know change nothing"""
    _compare(subject, {**subject.arguments(), "a_column_of_others": [{}] * len(subject.rows)}, "with another column")
    return "the same"


@check(needs=[values])
def same_twice(subject: RewardSubject) -> str:
    """the same completions get the same rewards again"""
    _compare(subject, subject.arguments(), "called again")
    return "the same"


@check(needs=[values])
def order(subject: RewardSubject) -> str:
    """rewards depend neither on the order of completions nor on the others of the call"""
    wanted = _rewards(subject, subject.arguments())
    backwards = list(range(len(wanted)))[::-1]
    found = _rewards(subject, subject.arguments(backwards))[::-1]
    if found != wanted:
        raise CheckFailed(f"the rewards {wanted}", f"{found}", "in the reverse order", subject.location)
    alone = [_rewards(subject, subject.arguments([i]))[0] for i in range(len(wanted))]
    if alone != wanted:
        raise CheckFailed(f"the rewards {wanted}", f"{alone}", "each alone", subject.location)
    return "reversed, and each alone"


@check(needs=[values])
def inputs(subject: RewardSubject) -> str:
    """it leaves its arguments as they are"""
    arguments = subject.arguments()
    before = copy.deepcopy(arguments)
    subject.call(arguments)
    for name, value in before.items():
        if arguments[name] != value:
            raise CheckFailed(f"{name} as before", f"{arguments[name]}", look_at=subject.location)
    return "unchanged"


@check(needs=[values])
def side_effects(subject: RewardSubject) -> str:
    """it does not change random generators, environment, working directory or default dtype"""
    _, changed = call_and_compare(lambda: subject.call(subject.arguments()))
    if changed:
        raise CheckFailed("the state of the process as before", f"changes {' and '.join(changed)}")
    return "none"


def _compare(subject: RewardSubject, arguments: dict[str, list[Any]], where: str) -> None:
    wanted, found = _rewards(subject, subject.arguments()), _rewards(subject, arguments)
    if found != wanted:
        raise CheckFailed(f"the rewards {wanted}", f"{found}", where, subject.location)


def _rewards(subject: RewardSubject, arguments: dict[str, list[Any]]) -> list[float | None]:
    """The rewards of a call, checked."""
    n, found = len(arguments["completions"]), subject.call(arguments)
    if not isinstance(found, list | tuple):
        raise CheckFailed(f"a list of {n} rewards", f"{type(found).__name__}", look_at=subject.location)
    if len(found) != n:
        raise CheckFailed(f"{n} rewards", f"{len(found)}", look_at=subject.location)
    for i, one in enumerate(found):
        if one is not None and not (isinstance(one, Real) and math.isfinite(one)):
            raise CheckFailed("a finite number or None", f"{one!r}", f"completion {i}", subject.location)
    return [None if one is None else float(one) for one in found]
