"""Calls in layouts of their own: the numbers of one process, wherever they are computed."""

from __future__ import annotations

import pytest
import torch

from reallm.config.parallel import ParallelArgs
from tests.algorithms.three_roles import Case, Outcome, train, train_all
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
