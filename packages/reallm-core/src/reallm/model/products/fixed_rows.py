"""Functions of rows, computed a fixed number of rows at a time, so that a library treats all of them alike.

On a GPU, libraries choose their code by the number of rows, and add up a row in another order for another number. With
calls of one shape alone, a row's result cannot depend on how many others there are; `model.exact` probes the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 128
"""Rows of a call: a product with fewer takes as long on a GPU, since reading the weight dominates."""


def in_fixed_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)`, computed for `ROWS` rows at a time; differentiable if the function is.

    Args:
        function: maps each row by itself: [ROWS, ...] -> [ROWS, ...].
        x: [N, ...]; the last call is filled up with zeros.
    """
    filled = F.pad(x, (0,) * (2 * x.dim() - 1) + (-len(x) % ROWS,))
    outputs = [function(rows) for rows in filled.split(ROWS)] if len(x) else [function(x)]
    return torch.cat(outputs)[: len(x)]
