"""Training by data-parallel ranks, with parameters copied or split: the numbers of one process."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reallm.parallel.layout import Layout
from reallm.parallel.placement import placement
from tests.helpers.ranks import on_ranks
from tests.parallel.train_cases import CONFIGS, Case, Run, trained, trained_here

DATA = [
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
    torch.set_num_threads(1)
    twice = [*DATA, *DATA]
    by_rank = on_ranks(4, trained_here, twice)
    found = {}
    for number, case in enumerate(DATA):
        first, second = ([of_rank[n] for of_rank in by_rank] for n in (number, number + len(DATA)))
        found[case] = first
        assert_same(first, second)
    return found


def assert_same(first: list[Run | None], second: list[Run | None]) -> None:
    """Bit for bit."""
    for one, other in zip(first, second, strict=True):
        if one is not None and other is not None:
            assert one.metrics == other.metrics
            assert all(torch.equal(tensor, other.parameters[name]) for name, tensor in one.parameters.items())


def assert_as_one_process(case: Case, by_rank: list[Run | None]) -> None:
    """Up to rounding: float32 sums in another order, of a few hundred terms."""
    whole = trained(replace(case, layout=None))
    layout = Layout.parse(str(case.layout))
    present = [run for run in by_rank if run is not None]
    assert len(present) == layout.size
    for run in present:
        assert run.metrics == present[0].metrics
        assert run.evaluations == present[0].evaluations
        for ours, theirs in ((run.metrics, whole.metrics), (run.evaluations, whole.evaluations)):
            for one, other in zip(ours, theirs, strict=True):
                assert one.keys() == other.keys()
                for name in one.keys() - {"tokens"}:  # those of micro-batches without loss are left out
                    assert one[name] == pytest.approx(other[name], rel=1e-5), name
    for rank, run in enumerate(by_rank):
        boxes = placement(CONFIGS[case.config], layout, rank)
        assert (run is None) == (not boxes)
        if run is not None:
            assert run.parameters.keys() == boxes.keys()
            for name, box in boxes.items():
                torch.testing.assert_close(
                    run.parameters[name], whole.parameters[name][box.slices], rtol=1e-5, atol=2e-6, msg=name
                )


@pytest.mark.parametrize("case", DATA, ids=str)
def test_training_gives_the_numbers_of_one_process(case: Case, runs: dict[Case, list[Run | None]]) -> None:
    assert_as_one_process(case, runs[case])
