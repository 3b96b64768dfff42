"""Losses of two terms over a batch that their objective prepares, on ranks: the numbers of one process."""

from __future__ import annotations

import pytest

from tests.training.loss_terms import OBJECTIVES
from tests.training.train_cases import Case, Run, all_on_ranks, assert_as_one_process

CASES = [
    *(
        Case(layout, objective="answers")
        for layout in ("dp2", "fsdp3", "tp2", "pp2", "pp4", "dp4", "dp2tp2", "pp2dp2", "pp2fsdp2", "pp2tp2")
    ),
    *(Case(layout, objective="scores") for layout in ("fsdp3", "pp2dp2", "pp2tp2")),
    *(Case(layout, "tied", max_tokens=1, objective="pairs-of-answers") for layout in ("dp2", "pp2", "dp2tp2")),
    Case("pp2", "mixtral", max_tokens=1, objective="answers"),
    Case("dp2", "mixtral", max_tokens=1, objective="answers"),
    *(Case(layout, dropout=0.2, checkpointing="full", objective="answers") for layout in ("dp2tp2", "pp2fsdp2")),
]


@pytest.fixture(scope="module")
def runs() -> dict[Case, list[Run | None]]:
    assert {case.objective for case in CASES} == OBJECTIVES.keys()
    return all_on_ranks(4, CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_gives_the_numbers_of_one_process(case: Case, runs: dict[Case, list[Run | None]]) -> None:
    assert_as_one_process(case, runs[case])
