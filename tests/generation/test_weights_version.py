"""Changes of weights are noticed, and nothing else is."""

from __future__ import annotations

import copy

import pytest
import torch

from reallm.config.optimizer import OptimizerConfig
from reallm.generation.weights_version import WeightsVersion
from reallm.training.optimizer import Optimizer
from tests.helpers.variants import BASE, build


def test_changes_in_place_and_new_parameters_are_noticed_once():
    network = build(BASE)
    version = WeightsVersion(network)
    assert not version.has_changed()
    with torch.no_grad():
        network.layers["1"].attn.q.weight.mul_(1)
    assert version.has_changed()
    assert not version.has_changed()
    network.load_state_dict(network.state_dict())
    assert version.has_changed()
    state = copy.deepcopy(network.state_dict())
    network.load_state_dict(state, assign=True)
    assert version.has_changed()
    network(torch.tensor([1, 2]), torch.tensor([0, 2])).sum().backward()
    network.zero_grad()
    network.train()
    network.eval()
    assert not version.has_changed()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimizer_step_is_noticed(dtype):
    network = build(BASE).to(dtype)
    version = WeightsVersion(network)
    optimizer = Optimizer(network, OptimizerConfig(lr=1e-2))
    network(torch.tensor([1, 2]), torch.tensor([0, 2])).sum().backward()
    optimizer.accumulate_gradients()
    assert not version.has_changed()
    optimizer.step(1e-2, optimizer.grad_norm())
    assert version.has_changed()


def test_a_parameter_at_the_address_of_another_one_is_a_new_one():
    layer = torch.nn.Linear(4, 4)
    version = WeightsVersion(layer)
    for _ in range(20):
        layer.weight = None
        layer.weight = torch.nn.Parameter(torch.zeros(4, 4))
        assert version.has_changed()
