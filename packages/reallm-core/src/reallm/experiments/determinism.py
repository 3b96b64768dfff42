"""Kernels that give the same numbers in every run. On a CPU all that are used here do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Have torch use only deterministic CUDA kernels within the block, where there is a GPU.

    The backward pass of packed attention then sums in a fixed order, which costs some of its speed.
    """
    if not (wanted and torch.cuda.is_available()):
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch refuses matrix products without it
    options: Any = torch.utils.deterministic
    was_on, filled = torch.are_deterministic_algorithms_enabled(), options.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    options.fill_uninitialized_memory = False  # meant for finding bugs: it writes every new tensor twice
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on)
        options.fill_uninitialized_memory = filled
