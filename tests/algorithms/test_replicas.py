"""The copies of a model, in one process: what is offloaded has no memory until it is used."""

from __future__ import annotations

import torch

from reallm.algorithms.replicas import Replicas
from reallm.config.optimizer import OptimizerConfig
from reallm.engine.real_model import ReaLModel
from reallm.parallel.layout import Layout
from reallm.training.engine import TrainEngine
from tests.helpers.tiny_config import TINY

HERE = Layout()
TOKENS, BOUNDS = torch.arange(9), torch.tensor([0, 4, 9])


def resident_bytes(model: ReaLModel) -> int:
    return sum(parameter.untyped_storage().nbytes() for parameter in model.parameters())


def test_an_offloaded_copy_has_no_memory_until_its_next_use() -> None:
    model = ReaLModel(TINY, seed=1).eval()
    replicas = Replicas(model)
    expected, n_bytes = model.token_logprobs(TOKENS, BOUNDS), resident_bytes(model)
    replicas.offload(HERE)
    replicas.wait_for_offload()
    assert resident_bytes(model) == 0
    assert torch.equal(replicas.at(HERE).token_logprobs(TOKENS, BOUNDS), expected)
    assert resident_bytes(model) == n_bytes


def test_an_offloaded_copy_comes_back_in_the_background() -> None:
    model = ReaLModel(TINY, seed=1).eval()
    replicas = Replicas(model)
    expected, n_bytes = model.token_logprobs(TOKENS, BOUNDS), resident_bytes(model)
    assert replicas.start_reload(HERE) == 0
    assert replicas.offload(HERE) == n_bytes
    replicas.wait_for_offload()
    assert replicas.start_reload(HERE) == n_bytes
    assert resident_bytes(model) == n_bytes
    assert torch.equal(replicas.at(HERE).token_logprobs(TOKENS, BOUNDS), expected)
    assert replicas.start_reload(HERE) == 0


def test_the_state_of_the_optimizer_is_offloaded_with_the_model_that_is_trained() -> None:
    model = ReaLModel(TINY, seed=1)
    engine = TrainEngine(model, OptimizerConfig(lr=1e-3), 10, 100)
    replicas = Replicas(model, engine)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    engine._optimizer.step(1e-3, torch.ones(()))
    moments = list(engine.state().moments.values())
    n_bytes = sum(moment.untyped_storage().nbytes() for moment in moments)
    replicas.offload(HERE, trained=True)
    replicas.wait_for_offload()
    assert resident_bytes(model) == 0
    assert sum(moment.untyped_storage().nbytes() for moment in moments if moment.dim()) == 0
    engine.reload()
    assert sum(moment.untyped_storage().nbytes() for moment in moments) == n_bytes
