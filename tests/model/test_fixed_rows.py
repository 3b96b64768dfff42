"""Functions of rows, a fixed number of rows at a time."""

import pytest
import torch
import torch.nn.functional as F

from reallm.model.products.fixed_rows import ROWS, in_fixed_rows


@pytest.mark.parametrize("n", [0, 1, ROWS - 1, ROWS, 2 * ROWS + 3])
@pytest.mark.parametrize("shape", [(5,), (3, 5)])
def test_calls_have_one_shape_and_results_are_those_of_one_call(n: int, shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(n, *shape, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    sizes = []

    def function(rows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return F.linear(rows, weight)

    found = in_fixed_rows(function, x)
    assert found.shape == (n, *shape[:-1], 7)
    assert set(sizes) <= ({ROWS} if n else {0})
    torch.testing.assert_close(found, F.linear(x, weight))


def test_gradients_are_those_of_one_call() -> None:
    x = torch.randn(ROWS + 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(ROWS + 5, 3, dtype=torch.float64)
    found = torch.autograd.grad(in_fixed_rows(lambda rows: F.linear(rows, weight), x), (x, weight), cotangent)
    wanted = torch.autograd.grad(F.linear(x, weight), (x, weight), cotangent)
    torch.testing.assert_close(found, wanted)
