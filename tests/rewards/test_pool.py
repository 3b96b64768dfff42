"""The pool of processes that call reward functions. One pool serves most tests, since processes are slow to start."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from reallm import RewardError
from reallm.rewards.outcome import Outcome
from reallm.rewards.pool import RewardCall, RewardPool
from reallm.rewards.resolve import resolve

FILE = Path(__file__).parent / "functions_to_try.py"
NAMES = ("matches", "names", "chance", "later", "raises", "dies", "nan", "too_few", "torch_is_imported")
ANSWERS = ("yes", "bad", "")


def call(name: str, *, seed: int = 0, answers: tuple[str, ...] = ANSWERS) -> RewardCall:
    n = len(answers)
    arguments = {"prompts": ["?"] * n, "completions": list(answers), "completion_ids": [[1]] * n, "answer": ["yes"] * n}
    return RewardCall(NAMES.index(name) if name in NAMES else 0, arguments, "rows.jsonl:7", seed)


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    pool = RewardPool([resolve(f"{FILE}:{name}") for name in NAMES], timeout_s=60, n_processes=1)
    yield pool
    pool.close()


def test_functions_get_the_arguments_that_they_take(pool: RewardPool) -> None:
    matched, named, later = pool.rewards([call("matches"), call("names"), call("later")])
    assert matched == Outcome([1.0, 0.0, None], [None] * 3)
    assert named.rewards == [3.0] * 3, "all but completions"
    assert later.rewards == [2.0] * 3


def test_the_processes_import_no_torch(pool: RewardPool) -> None:
    assert pool.rewards([call("torch_is_imported")])[0].rewards == [0.0] * 3


def test_only_the_answer_that_a_function_fails_for_has_no_reward(pool: RewardPool) -> None:
    raised, died = pool.rewards([call("raises"), call("dies")])
    assert raised.rewards == died.rewards == [1.0, None, 1.0]
    assert raised.failures == died.failures == [None, "error", None]
    assert raised.trace.endswith("ZeroDivisionError: division by zero\n")
    assert died.trace == "the process ended with exit code 3"


def test_random_numbers_follow_from_the_seed(pool: RewardPool) -> None:
    first, other = pool.rewards([call("chance", seed=1), call("chance", seed=2)])
    assert first != other
    assert pool.rewards([call("later"), call("chance", seed=1)])[1] == first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", r"functions_to_try\.py:nan' returned nan as a reward.*\(row rows\.jsonl:7, completion 3 of 3\)"),
        ("too_few", r"functions_to_try\.py:too_few' returned 1 reward for 3 completions \(row rows\.jsonl:7\)"),
    ],
)
def test_what_is_no_reward_is_named(pool: RewardPool, name: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        pool.rewards([call(name)])
    assert pool.rewards([call("later")])[0].rewards == [2.0] * 3, "the pool can go on"


def test_a_call_that_takes_too_long_is_ended() -> None:
    pool = RewardPool([resolve(f"{FILE}:hangs")], timeout_s=4, n_processes=2)
    try:
        hung, ended = pool.rewards([call("hangs"), call("hangs", answers=("yes",))])
    finally:
        pool.close()
    assert hung.failures == [None, "timeout", None]
    assert hung.rewards == [1.0, None, 1.0]
    assert hung.trace == "no answer within 4 s"
    assert ended.rewards == [1.0]


def test_answers_of_a_call_that_failed_are_tried_side_by_side(tmp_path: Path) -> None:
    pool = RewardPool([resolve(f"{FILE}:meets")], timeout_s=60, n_processes=2)
    both = call("meets", answers=("a", "b"))
    found = pool.rewards([dataclasses.replace(both, arguments={**both.arguments, "answer": [str(tmp_path)] * 2})])
    pool.close()
    assert found == [Outcome([1.0, 1.0], [None, None])]


def test_more_processes_are_allowed_than_there_is_memory_for() -> None:
    pool = RewardPool([resolve(f"{FILE}:matches")], timeout_s=60, n_processes=10**9)
    assert pool.rewards([call("matches")])[0].rewards == [1.0, 0.0, None]
    pool.close()
