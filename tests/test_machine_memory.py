"""What is free and what was held is known on a machine that tells it."""

from __future__ import annotations

import torch

from reallm.machine_memory import available_memory, peak_memory

CPU = torch.device("cpu")


def test_what_is_there_is_known() -> None:
    assert (available_memory(CPU) or 0) > 1 << 20
    assert peak_memory(CPU) > 1 << 20
