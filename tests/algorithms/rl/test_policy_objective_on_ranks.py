"""The loss of a policy on ranks: the numbers of one process, of a step and of the one after it."""

from __future__ import annotations

import pytest
import torch

from reallm.algorithms.rl.policy_objective import PolicyObjective
from reallm.engine.real_model import ReaLModel
from reallm.parallel.mesh import Mesh
from reallm.training.engine import TrainEngine
from tests.algorithms.rl.test_policy_objective import OFF_POLICY, SGD, VOCABULARY, model, off_policy_batch
from tests.helpers.ranks import on_ranks
from tests.helpers.tiny_config import TINY


def steps(layout: str | None) -> list[dict[str, float]]:
    """Metrics of two steps, the second after a change by the gradient of the first."""
    batch = off_policy_batch(model())
    config = TINY.replace(init_std=0.4, vocab_size=VOCABULARY)
    actor = ReaLModel(config, seed=3, dtype=torch.float64, mesh=None if layout is None else Mesh.of(layout))
    engine = TrainEngine(actor, SGD, total_steps=2, max_tokens_per_microbatch=7)
    return [engine.train_batch(batch, PolicyObjective(OFF_POLICY)) for _ in range(2)]


def steps_here(rank: int, layouts: list[str]) -> list[list[dict[str, float]]]:
    return [steps(layout) for layout in layouts]


def test_any_layout_gives_the_same_steps() -> None:
    alone = steps(None)
    assert abs(alone[1]["loss"] - alone[0]["loss"]) > 1e-3
    names = [name for name in PolicyObjective.metric_names if name in alone[0]]
    assert {"loss", "entropy", "kl"} <= set(names)
    for results in on_ranks(2, steps_here, ["dp2", "fsdp2", "tp2", "pp2"]):
        for found in results:
            for step, expected in zip(found, alone, strict=True):
                assert [step[name] for name in (*names, "grad_norm")] == pytest.approx(
                    [expected[name] for name in (*names, "grad_norm")], rel=1e-6, abs=1e-9
                )
