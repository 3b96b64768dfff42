"""PPO and GRPO under random plans: the numbers of one process, and what was sent is what the plan says."""

from __future__ import annotations

from collections import defaultdict

import pytest

from reallm.algorithms.placement import Placement
from reallm.parallel.layout import Layout
from reallm.reallocation.plan import plan as plan_move
from tests.algorithms.rl_plans import Plan, Trained, check_metrics, train_all
from tests.helpers.ranks import on_ranks
from tests.helpers.tiny_config import TINY

SEEDS = {"ppo": range(3), "grpo": range(3)}
ITEMSIZE = 8


@pytest.fixture(scope="module", params=["ppo", "grpo"])
def algorithm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def by_plan(algorithm: str) -> dict[int, list[Trained]]:
    by_rank = on_ranks(4, train_all, [Plan.draw(algorithm, seed) for seed in SEEDS[algorithm]])
    return {seed: [outcomes[number] for outcomes in by_rank] for number, seed in enumerate(SEEDS[algorithm])}


def test_metrics_are_those_of_one_process(algorithm: str, by_plan: dict[int, list[Trained]]) -> None:
    check_metrics([(Plan.draw(algorithm, seed), outcomes) for seed, outcomes in by_plan.items()])


def test_bytes_that_moves_send_are_those_of_their_plans(by_plan: dict[int, list[Trained]]) -> None:
    for first, *_ in by_plan.values():
        for spans in first.spans:
            received: dict[str, int] = defaultdict(int)
            times: dict[tuple[str, int], int] = defaultdict(int)
            for span in spans:
                if span.kind == "move":
                    received[span.name] += span.bytes
                    times[span.name, span.rank] += 1
            assert received
            for name, n_bytes in received.items():
                n_times = {n for (other, _), n in times.items() if other == name}
                assert len(n_times) == 1
                assert n_bytes == n_times.pop() * predicted(first.placement, name)


def test_bytes_that_calls_send_are_those_of_the_placement(algorithm: str, by_plan: dict[int, list[Trained]]) -> None:
    for seed, outcomes in by_plan.items():
        if Plan.draw(algorithm, seed).async_steps:
            continue  # what is sent belongs to several steps
        placement = outcomes[0].placement
        for step, spans in enumerate(outcomes[0].spans):
            sizes = {key: n_bytes for found in outcomes for key, n_bytes in found.sizes[step].items()}
            expected: dict[tuple[int, str], int] = defaultdict(int)
            for sent in placement.transfers(placement.graph.calls):
                expected[sent.target, f"{sent.producer} to {sent.consumer}"] += sum(sizes[key] for key in sent.keys)
            received: dict[tuple[int, str], int] = defaultdict(int)
            for span in spans:
                if span.kind == "data":
                    received[span.rank, span.name] += span.bytes
            assert received == expected


def predicted(placement: Placement, name: str) -> int:
    """Bytes of a move, such as `actor to dp2@2-3`, or `actor to ref`."""
    role, _, where = name.partition(" to ")
    target = placement.homes.get(where)
    layouts = [layout for layout in placement.copies(role) if layout.short == where]
    config = TINY.replace(is_critic=role == "critic")
    return plan_move(config, placement.homes[role], target or one(layouts)).total_elements * ITEMSIZE


def one(layouts: list[Layout]) -> Layout:
    (found,) = layouts
    return found
