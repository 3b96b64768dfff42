"""The clipped loss of a critic: its values and its gradients."""

from __future__ import annotations

import torch

from reallm.algorithms.rl.value_loss import value_losses


def test_a_value_that_has_moved_too_far_towards_its_return_has_no_gradient() -> None:
    # unmoved; moved towards the return within the bound and beyond it; moved away from it
    values = torch.tensor([0.0, 0.1, 0.5, -0.5], requires_grad=True)
    found = value_losses(values, torch.zeros(4), torch.ones(4), eps_clip=0.2)
    torch.testing.assert_close(found.losses, torch.tensor([1.0, 0.81, 0.64, 2.25]) / 2)
    assert found.clipped.tolist() == [False, False, True, False]
    (gradient,) = torch.autograd.grad(found.losses.sum(), values)
    torch.testing.assert_close(gradient, torch.tensor([-1.0, -0.9, 0.0, -1.5]))


def test_values_within_the_bounds_are_not_counted_for_what_rounds() -> None:
    generator = torch.Generator().manual_seed(1)
    old = torch.rand(1000, generator=generator)
    found = value_losses(
        old + 0.01 * torch.randn(1000, generator=generator).clamp(-1, 1), old, torch.zeros(1000), eps_clip=0.2
    )
    assert not found.clipped.any()
