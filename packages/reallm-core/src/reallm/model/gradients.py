"""`torch.autograd.grad` and `backward` from gradients that have the shapes of their outputs.

Torch's own compare the shapes by functions that import SymPy, which takes a quarter of a second in each process.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.autograd.graph import _engine_run_backward  # what both end with, in all versions since 2.3


def input_gradients(output: Tensor, inputs: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
    """The gradients of the inputs that an output was computed from, of which it needs all.

    Args:
        output: the output.
        inputs: tensors that require gradients.
        gradient: the gradient of the output; the same shape.
    """
    found = _engine_run_backward((output,), (gradient,), False, False, tuple(inputs), False, accumulate_grad=False)
    return tuple(found)


def accumulate_gradients(output: Tensor, gradient: Tensor) -> None:
    """Add to the `grad` of all leaves that an output was computed from.

    Args:
        output: the output.
        gradient: the gradient of the output; the same shape.
    """
    _engine_run_backward((output,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True)
