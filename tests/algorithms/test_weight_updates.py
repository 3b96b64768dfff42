"""Weights that follow those of a trained role are the moving average that the formula gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reallm.algorithms.role import Role
from reallm.algorithms.weight_updates import due_updates, update_weights
from reallm.config.args import ModelArgs
from reallm.engine.real_model import ReaLModel
from reallm.specs import ModelFunctionCall, WeightUpdate
from tests.helpers.tiny_config import TINY


def role(seed: int, dtype: str) -> Role:
    model = ReaLModel(TINY, dtype=dtype, seed=seed)
    return Role(model, None, None, ModelArgs(path="x"), model.dtype)


def call(**settings: Any) -> ModelFunctionCall:
    return ModelFunctionCall("train", "actor", "train_step", (), updates=(WeightUpdate("ref", **settings),))


def updated(call: ModelFunctionCall, roles: dict[str, Role], steps_before: int, steps: int) -> list[str]:
    """The roles that have followed."""
    due = due_updates(call, steps_before, steps)
    for update in due:
        update_weights(roles[call.role], roles[update.target], update.eta)
    return [update.target for update in due]


def copied(role: Role) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in role.model.named_parameters()}


def test_the_average_is_that_of_the_formula() -> None:
    roles = {"actor": role(1, "float64"), "ref": role(2, "float64")}
    expected = copied(roles["ref"])
    for step in range(1, 7):
        for parameter in roles["actor"].model.parameters():
            parameter.data.add_(torch.randn_like(parameter))
        found = updated(call(every=2, eta=0.3), roles, step - 1, step)
        assert found == (["ref"] if step % 2 == 0 else [])
        if found:
            trained = copied(roles["actor"])
            expected = {name: 0.3 * trained[name] + (1 - 0.3) * value for name, value in expected.items()}
    for name, value in copied(roles["ref"]).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("trained", "follower"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_follower_keeps_its_own_dtype(trained: str, follower: str) -> None:
    roles = {"actor": role(1, trained), "ref": role(2, follower)}
    before = copied(roles["ref"])
    updated(call(eta=0.25), roles, 0, 1)
    for name, value in copied(roles["ref"]).items():
        average = 0.25 * copied(roles["actor"])[name].float() + 0.75 * before[name].float()
        assert value.dtype == getattr(torch, follower)
        torch.testing.assert_close(value, average.to(value.dtype), rtol=1e-6, atol=1e-6)


def test_eta_1_copies() -> None:
    roles = {"actor": role(1, "float32"), "ref": role(2, "float32")}
    updated(call(), roles, 0, 1)
    trained = copied(roles["actor"])
    assert all(torch.equal(value, trained[name]) for name, value in copied(roles["ref"]).items())


def test_mini_batches_count_and_one_call_updates_once() -> None:
    roles = {"actor": role(1, "float32"), "ref": role(2, "float32")}
    due = [bool(updated(call(every=6, eta=0.5), roles, 4 * (step - 1), 4 * step)) for step in range(1, 5)]
    assert due == [False, True, True, False]
    assert updated(call(every=1, eta=0.5), roles, 0, 4) == ["ref"]
