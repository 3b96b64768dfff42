"""Weights of roles that follow those of a trained one, such as a reference that is a moving average of the policy."""

from __future__ import annotations

from collections.abc import Mapping

from reallm.algorithms.role import Role
from reallm.specs import ModelFunctionCall, WeightUpdate


def due_updates(call: ModelFunctionCall, steps_before: int, steps: int) -> list[WeightUpdate]:
    """The updates that follow a train call, given the optimizer steps of the run before the call and after it."""
    return [update for update in call.updates if steps // update.every > steps_before // update.every]


def update_weights(call: ModelFunctionCall, roles: Mapping[str, Role], steps_before: int, steps: int) -> list[str]:
    """Move the weights of the roles that follow the one that a call has trained, if it is time; returns their names.

    All ranks of a job make the same calls. Each average is computed in float32 or wider, and kept in the dtype of the
    role that follows.

    Args:
        call: the train call.
        roles: the loaded roles, by name.
        steps_before: optimizer steps of the run before the call.
        steps: optimizer steps of the run after it; an update that falls between is made now.
    """
    due = due_updates(call, steps_before, steps)
    for update in due:
        trained, target = roles[call.role], roles[update.target].model
        if trained.engine is not None and trained.engine.before_optimizer_step is not None:
            trained.engine.before_optimizer_step()  # a save in progress reads the weights
        if not (trained.is_here or roles[update.target].is_here):
            continue
        trained.model.reallocate(target.mesh or target.layout, into=target, eta=update.eta)
    return [update.target for update in due]
