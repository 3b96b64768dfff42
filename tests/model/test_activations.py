"""Exact forms of activation functions: the same function, with bits that do not depend on an element's place."""

from __future__ import annotations

import pytest
import torch

from reallm.model.activations import ACTIVATION_FUNCTIONS, exact_activation


@pytest.mark.parametrize("name", ACTIVATION_FUNCTIONS)
def test_an_exact_activation_is_the_same_function(name: str) -> None:
    points = torch.tensor([0.0, -0.0, 1e-30, 0.3, -0.3, 3, -3, 12, -12, 90, -90, 1e4, -1e4])
    x, double = points.clone().requires_grad_(), points.double().requires_grad_()
    found, expected = exact_activation(name)(x), ACTIVATION_FUNCTIONS[name](double)
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=2e-7)
    (grad,), (expected_grad,) = torch.autograd.grad(found.sum(), x), torch.autograd.grad(expected.sum(), double)
    torch.testing.assert_close(grad, expected_grad.float(), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(exact_activation(name)(points), found)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("name", ACTIVATION_FUNCTIONS)
def test_an_element_has_the_same_bits_in_every_place(name: str, n_threads: int) -> None:
    function, before = exact_activation(name), torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        x = 4 * torch.randn(70_001, generator=torch.Generator().manual_seed(0))
        whole = function(x)
        for start, stop in ((0, 1), (0, 7), (5, 24), (1, 64), (100, 135), (3, 66_000), (69_990, 70_001)):
            assert torch.equal(function(x[start:stop]), whole[start:stop]), (start, stop)
        columns = x[:70_000].view(700, 100)
        assert torch.equal(function(columns[:, 3:90]), whole[:70_000].view(700, 100)[:, 3:90])
    finally:
        torch.set_num_threads(before)
