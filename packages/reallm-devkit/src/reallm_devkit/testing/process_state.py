"""What belongs to the whole process, and what a plugin's code has changed of it."""

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
THINGS = (*GENERATORS, "os.environ", "the working directory", "torch's default dtype")
"""What is looked at."""


def changes(doing: Callable[[], T]) -> tuple[T, list[str]]:
    """What `doing` returns, and which of `THINGS` it changes.

    Random generators are in a state of their own meanwhile, so that one which is set to what it was is found as well.
    They count if they change when it is done again, too: some libraries draw a number when they are imported.
    """
    result, changed = _changes(doing)
    if not set(changed) <= set(GENERATORS):
        return result, [name for name in changed if name not in GENERATORS]
    return result, [name for name in _changes(doing)[1] if name in changed] if changed else []


def _changes(doing: Callable[[], T]) -> tuple[T, list[str]]:
    with random_states(20_000_003):
        before = _state()
        result = doing()
        after = _state()
    return result, [name for name in THINGS if before[name] != after[name]]


@contextmanager
def random_states(seed: int) -> Iterator[None]:
    """Have the random generators of the process begin with `seed`, and go on afterwards where they were."""
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
    return dict(zip(THINGS, (*generators, dict(os.environ), Path.cwd(), torch.get_default_dtype()), strict=True))
