"""Weights of roles that follow those of a trained one, such as a reference that is a moving average of the policy."""

from __future__ import annotations

from reallm.algorithms.role import Role
from reallm.specs import ModelFunctionCall, WeightUpdate


def due_updates(call: ModelFunctionCall, steps_before: int, steps: int) -> list[WeightUpdate]:
    """The updates that follow a train call, given the optimizer steps of the run before the call and after it."""
    return [update for update in call.updates if steps // update.every > steps_before // update.every]


def update_weights(trained: Role, target: Role, eta: float) -> int:
    """Move the weights of a role towards those of a trained one; returns the bytes that this rank received.

    All ranks of both homes call it. The average is computed in float32 or wider, and kept in the dtype of the role that
    follows.

    Args:
        trained: the trained role.
        target: the role that follows.
        eta: weight of the trained weights in the average.
    """
    trained.wait_until_read()
    model = target.model
    trained.model.reallocate(model.mesh or model.layout, into=model, eta=eta)
    assert model.moved is not None
    return model.moved.bytes_received
