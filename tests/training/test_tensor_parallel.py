"""Training by ranks that split the layers, alone and with data parallelism and pipelines: as in one process."""

from __future__ import annotations

import pytest

from tests.training.train_cases import Case, Run, all_on_ranks, assert_as_one_process

CASES = [
    Case("tp4", "tied", n_layers=2),  # two KV heads on four ranks
    Case("tp2", "mixtral"),
    Case("fsdp2tp2", "shared-experts", n_layers=2),
    Case("dp2tp2", "tied", n_layers=2),
    *(Case("fsdp2tp2", "tied", zero=zero, n_layers=2) for zero in (1, 3)),
    Case("tp2pp2", "mixtral", checkpointing="full"),
    Case("tp2", "norm-of-all-heads", n_layers=2),
    Case("tp4", "layer-norm-of-all-heads", checkpointing="selective", n_layers=2),
    Case("tp4", "layer-norm-of-all-heads", sequence_parallel=True, n_layers=2),
    Case("tp2pp2", "mixtral", sequence_parallel=True, checkpointing="full"),
    Case("tp2", "shared-experts", sequence_parallel=True, n_layers=2),
    Case("tp2", "gates", n_layers=2),
    Case("tp2", "gates", sequence_parallel=True, n_layers=2),
    Case("fsdp2tp2", "tied", sequence_parallel=True, checkpointing="selective", n_layers=2),
]


@pytest.fixture(scope="module")
def runs() -> dict[Case, list[Run | None]]:
    return all_on_ranks(4, CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_gives_the_numbers_of_one_process(case: Case, runs: dict[Case, list[Run | None]]) -> None:
    assert_as_one_process(case, runs[case])
