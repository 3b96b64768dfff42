"""Derives an independent random seed for each purpose, and seeds the generators that libraries share."""

from __future__ import annotations

import hashlib
import random


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for a purpose, the same on every machine: `derive_seed(1, "data order", epoch)`."""
    text = ":".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def seed_global_generators(seed: int) -> None:
    """Seed the generators of Python, numpy and torch that plugins and libraries draw from; the core draws from its own.

    All ranks get the same, so that code which every rank runs, such as a dataset's, draws the same on each.
    """
    import numpy as np
    import torch

    random.seed(derive_seed(seed, "python"))
    np.random.seed(derive_seed(seed, "numpy") % 2**32)
    torch.manual_seed(derive_seed(seed, "torch"))
