"""Training by data-parallel ranks, with parameters copied or split: the numbers of one process."""

from __future__ import annotations

import pytest

from tests.training.train_cases import Case, Run, all_on_ranks, assert_as_one_process

CASES = [
    Case("dp2"),
    Case("dp3"),
    *(Case("fsdp2", zero=zero) for zero in (1, 2, 3)),
    Case("fsdp3", zero=3),
    Case("fsdp4", zero=1),
    Case("fsdp2", "tied", zero=3),
    Case("fsdp3", "tied", zero=2, checkpointing="full"),
    Case("fsdp2", zero=3, checkpointing="selective"),
]


@pytest.fixture(scope="module")
def runs() -> dict[Case, list[Run | None]]:
    return all_on_ranks(4, CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_gives_the_numbers_of_one_process(case: Case, runs: dict[Case, list[Run | None]]) -> None:
    assert_as_one_process(case, runs[case])
