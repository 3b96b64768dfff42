"""Global state of the process, and which of it a plugin's code changes."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")

GENERATORS = ("random", "numpy.random", "torch's generator")
STATE = (*GENERATORS, "os.environ", "the working directory", "torch's default dtype")
"""Names of the global state that is compared before and after a call."""


def call_and_compare(function: Callable[[], T]) -> tuple[T, list[str]]:
    """Call `function` and return its result and the names in `STATE` of what it changed.

    The call runs with random generators seeded by an unusual number, so that code which sets a common seed is found,
    too. A changed generator counts only if a second call changes it again: some libraries draw a number on import.
    """
    result, changed = _call_and_compare(function)
    if not set(changed) <= set(GENERATORS):
        return result, [name for name in changed if name not in GENERATORS]
    return result, [name for name in _call_and_compare(function)[1] if name in changed] if changed else []


def _call_and_compare(function: Callable[[], T]) -> tuple[T, list[str]]:
    with seeded_generators(20_000_003):
        before = _state()
        result = function()
        after = _state()
    return result, [name for name in STATE if before[name] != after[name]]


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seed the random generators of the process for a block, and restore their state afterwards."""
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)


def _state() -> dict[str, Any]:
    generators = (random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist())
    return dict(zip(STATE, (*generators, dict(os.environ), Path.cwd(), torch.get_default_dtype()), strict=True))
