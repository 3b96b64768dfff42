"""Each check of the kit for algorithms finds what it is for, and finds no fault with what is right."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from reallm import Algorithm
from reallm.errors import ConfigError
from reallm_devkit import ALGORITHM_CHECKS, AlgorithmKit, check_algorithm
from reallm_devkit.testing.algorithms.runs import run
from reallm_devkit.testing.checks import Check
from reallm_devkit.testing.kit import CaseRun
from reallm_devkit.testing.report import Result
from tests.devkit.testing.algorithms.broken_algorithms import BROKEN, ROWS, algorithm


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def results(spec: Algorithm, name: str) -> Mapping[str, Result]:
    """Results of a check and of those that it needs."""
    kit = AlgorithmKit.of(algorithm=spec, rows=ROWS)
    case = CaseRun(kit, "default")
    wanted = next(check for check in ALGORITHM_CHECKS if check.name == name)

    def needed(check: Check) -> list[Check]:
        return [*(other for need in check.needs for other in needed(need)), check]

    return {check.name: case.result(check) for check in needed(wanted)}


class TestGood(AlgorithmKit):
    algorithm = algorithm()
    rows = ROWS


@pytest.mark.parametrize(("name", "spec"), BROKEN, ids=[f"{name}-{number}" for number, (name, _) in enumerate(BROKEN)])
def test_what_is_broken_is_found_by_its_check_and_by_none_that_it_needs(name: str, spec: Algorithm) -> None:
    *before, found = results(spec, name).values()
    assert [one.check for one in before if one.status == "failed"] == []
    assert found.status == "failed", found.detail
    assert found.failure is not None
    assert found.failure.expected
    assert found.failure.seen
    assert found.failure.look_at


def test_there_is_something_broken_for_each_check() -> None:
    assert {name for name, _ in BROKEN} == {check.name for check in ALGORITHM_CHECKS}


def test_a_failure_says_which_line_of_the_class_to_look_at() -> None:
    spec = next(spec for name, spec in BROKEN if name == "weights")
    failure = results(spec, "weights")["weights"].failure
    assert failure is not None
    line = spec.interface_class("actor").loss_weight.__code__.co_firstlineno
    assert failure.look_at.endswith(f"broken_algorithms.py:{line} (NormalisesByTheBatch.loss_weight)")
    assert failure.seen == "1"
    assert "a weight that is the sum of those of the samples, 8" in failure.expected


def test_an_exception_is_reported_with_the_line_that_raised_it() -> None:
    spec = next(spec for name, spec in BROKEN if name == "run")
    failure = results(spec, run.name)[run.name].failure
    assert failure is not None
    assert failure.seen == "raised ValueError: two is enough"
    assert "RaisesInTheSecondStep.train_step" in failure.look_at


def test_without_an_algorithm_there_is_nothing_to_check() -> None:
    with pytest.raises(ConfigError, match="say which algorithm is to be checked"):
        check_algorithm("")


def test_without_rows_the_missing_setting_is_named() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.train_path"):
        check_algorithm(algorithm())


def test_a_setting_that_there_is_not_is_refused_before_any_check() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'decay'"):
        check_algorithm(algorithm(), rows=ROWS, arguments=["deca=1"])
