"""Training by the stages of a pipeline, alone and with data parallelism: the numbers of one process."""

from __future__ import annotations

import pytest

from tests.training.train_cases import Case, Run, all_on_ranks, assert_as_one_process

CASES = [
    Case("pp2"),
    Case("pp4", "tied"),
    Case("pp2", "mixtral"),
    Case("pp3", "mixtral", checkpointing="full"),
    Case("pp2dp2", "tied"),
    *(Case("pp2fsdp2", "tied", zero=zero) for zero in (1, 2, 3)),
    Case("pp2fsdp2", checkpointing="full"),
]


@pytest.fixture(scope="module")
def runs() -> dict[Case, list[Run | None]]:
    return all_on_ranks(4, CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_gives_the_numbers_of_one_process(case: Case, runs: dict[Case, list[Run | None]]) -> None:
    assert_as_one_process(case, runs[case])
