"""Gradients from gradients of the outputs: those of torch's own functions, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from reallm.model.gradients import accumulate_gradients, input_gradients


def _graph() -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    leaves = [torch.randn(4, 3, generator=generator).requires_grad_() for _ in range(2)]
    out = leaves[0].exp() * leaves[1].sin()
    return leaves, out, torch.randn(4, 3, generator=generator)


def test_gradients_of_inputs_are_those_of_torch() -> None:
    leaves, out, gradient = _graph()
    expected = torch.autograd.grad(out, leaves, gradient, retain_graph=True)
    found = input_gradients(out, leaves, gradient)
    assert all(torch.equal(ours, torchs) for ours, torchs in zip(found, expected, strict=True))
    assert all(leaf.grad is None for leaf in leaves)


def test_gradients_are_added_to_those_that_are_there() -> None:
    leaves, out, gradient = _graph()
    expected = torch.autograd.grad(out, leaves, gradient, retain_graph=True)
    leaves[0].grad = torch.ones(4, 3)
    accumulate_gradients(out, gradient)
    for leaf, more, before in zip(leaves, expected, (1, 0), strict=True):
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, before + more)
