"""Calls in layouts of their own: the numbers of one process, wherever they are computed."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from reallm.config.parallel import ParallelArgs
from reallm.errors import NonFiniteError
from reallm.specs import WeightUpdate
from tests.algorithms.three_roles import Case, Outcome, set_up, train, train_all
from tests.helpers.ranks import on_ranks

CASES = [
    Case("all-calls-in-one", ParallelArgs(dp=2, tp=2)),
    Case("on-one-rank", layouts=dict.fromkeys(("actor_gen", "ref_inf", "reward", "actor_train"), "dp1@2")),
    Case(
        "dp2-and-tp2",
        layouts={"actor_gen": "dp2", "ref_inf": "dp2", "reward": "dp2", "actor_train": "tp2"},
    ),
    Case("dp4-and-tp2pp2", layouts={"actor_gen": "dp4", "actor_train": "tp2pp2"}),
    Case(
        "reference-elsewhere",
        layouts={"actor_gen": "dp4", "ref_inf": "tp2@2-3", "reward": "dp1@3", "actor_train": "dp2"},
    ),
    Case(
        "offloaded",
        ParallelArgs(zero=3),
        {"actor_gen": "dp2@2-3", "ref_inf": "pp2@1,3", "actor_train": "fsdp2"},
        ("actor_gen", "ref_inf", "actor_train"),
    ),
]


@pytest.fixture(scope="module")
def alone() -> Outcome:
    return train(0, Case("alone"))


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[Outcome]]:
    by_rank = on_ranks(4, train_all, CASES)
    return {case.name: [outcomes[number] for outcomes in by_rank] for number, case in enumerate(CASES)}


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_losses_tokens_and_weights_are_those_of_one_process(
    name: str, outcomes: dict[str, list[Outcome]], alone: Outcome
) -> None:
    for outcome in outcomes[name]:
        assert outcome.tokens in ([], alone.tokens)
        for found, expected in zip(outcome.metrics, alone.metrics, strict=True):
            assert found == pytest.approx(expected, rel=1e-6)  # norms are kept in float32
            assert found["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-9)
        assert outcome.evaluation == pytest.approx(alone.evaluation, rel=1e-9)
        assert outcome.versions == alone.versions == {"actor": 3}
        assert outcome.state == {"n_trained": 3}
        for parameter, tensor in outcome.weights.items():
            torch.testing.assert_close(tensor, alone.weights[parameter], rtol=1e-9, atol=1e-9)
    assert any(outcome.weights for outcome in outcomes[name])
    assert any(outcome.tokens for outcome in outcomes[name])


ON_TWO_OF_THREE = Case(
    "two-of-three",
    layouts={"actor_gen": "dp1@1", "ref_inf": "dp1", "reward": "dp1@1", "actor_train": "dp2"},
)


def step_while_rank_2_is_free(rank: int) -> tuple[dict[str, float], list[int]]:
    """Metrics of a step, and the operations of the whole job's group in each call of this rank, and at the step's end.

    Ranks 0 and 1 train only once rank 2 has reached the end.
    """
    setup = set_up(ON_TWO_OF_THREE)
    store: Any = dist.distributed_c10d._get_default_store()
    world: Any = dist.group.WORLD
    counts: list[int] = []

    def counted(work: Any) -> Any:
        def count(*args: Any) -> Any:
            n_before = world._get_sequence_number_for_group()
            result = work(*args)
            counts.append(world._get_sequence_number_for_group() - n_before)
            return result

        return count

    actor, ref, results = setup.interfaces["actor"], setup.interfaces["ref"], setup.executor._results
    generate, inference, train_step, after_step = actor.generate, ref.inference, actor.train_step, results.after_step

    def wait_and_train(*args: Any) -> Any:
        store.wait(["rank 2 is at the end"], timedelta(seconds=240))
        return train_step(*args)

    def arrive(*args: Any) -> Any:
        if rank == 2:
            store.set("rank 2 is at the end", "")
        return after_step(*args)

    actor.generate, ref.inference, actor.train_step = counted(generate), counted(inference), counted(wait_and_train)
    results.after_step = counted(arrive)
    return setup.step(1), counts


def test_ranks_without_a_part_in_a_call_do_not_wait_for_it(alone: Outcome) -> None:
    for rank, (metrics, counts) in enumerate(on_ranks(3, step_while_rank_2_is_free)):
        assert metrics["train/loss"] == pytest.approx(alone.metrics[0]["train/loss"], rel=1e-9)
        *in_calls, at_end = counts
        assert in_calls == [0] * (0 if rank == 2 else 2)
        assert at_end > 0


def step_that_fails(rank: int, case: Case) -> str:
    setup = set_up(case)
    setup.step(1)
    setup.interfaces["actor"].breaks_at = 2
    try:
        setup.step(2)
    except NonFiniteError as error:
        message = str(error)
    else:
        message = ""
    setup.interfaces["actor"].breaks_at = None
    setup.step(2)  # all ranks can go on
    return message


@pytest.mark.parametrize("case", [ON_TWO_OF_THREE, Case("all")], ids=lambda case: case.name)
def test_a_loss_that_is_not_finite_is_an_error_on_all_ranks(case: Case) -> None:
    messages = on_ranks(3, step_that_fails, case)
    assert messages[0].startswith("step 2: the loss of ")
    assert messages == messages[:1] * 3


def followers_after_a_failure(rank: int, case: Case) -> list[bool]:
    """Whether the reference has moved: in a step that fails, and when it is made again."""
    setup = set_up(case)
    reference, moved = setup.roles["ref"].model, []
    for breaks_at in (1, None):
        setup.interfaces["actor"].breaks_at = breaks_at
        before = {name: tensor.clone() for name, tensor in reference.local_tensors().items()}
        with nullcontext() if breaks_at is None else pytest.raises(NonFiniteError):
            setup.step(1)
        moved.append(any(not torch.equal(tensor, before[name]) for name, tensor in reference.local_tensors().items()))
    return moved


def test_a_reference_does_not_follow_a_training_that_failed_elsewhere() -> None:
    layouts = {"actor_gen": "dp1", "actor_train": "dp1", "ref_inf": "dp1@1", "reward": "dp1@1"}
    case = Case("follower-elsewhere", layouts=layouts, updates=(WeightUpdate("ref", eta=0.5),))
    assert on_ranks(2, followers_after_a_failure, case) == [[False, False], [False, True]]
