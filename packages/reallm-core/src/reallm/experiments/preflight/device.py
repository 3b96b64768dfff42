"""Chooses the device and the dtype, and enables deterministic CUDA kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from reallm.dtype_device import device_type
from reallm.errors import ConfigError


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device for a value of `model.device`; `auto` is a GPU if there is one.

    Args:
        name: `auto`, `cuda` or `cpu`.
        local_rank: rank of this process on its machine, which is the index of its GPU; None for a single process, which
            uses torch's current GPU.

    Raises:
        ConfigError: `cuda` on a machine without a GPU, or with fewer GPUs than processes.
    """
    name = device_type(name)
    if name != "cuda":
        return torch.device(name)
    if not torch.cuda.is_available():
        raise ConfigError("model.device=cuda, but torch sees no GPU here; use model.device=cpu or auto")
    if local_rank is None:
        return torch.device(name)
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank + 1} on this machine has no GPU, torch sees {torch.cuda.device_count()} here; let "
            "each process see all GPUs of its machine, start fewer processes, or use model.device=cpu"
        )
    return torch.device(name, local_rank)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype for a value of `model.dtype`; `auto` is bfloat16 on a GPU that supports it, else float32."""
    if name == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float32
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


@contextmanager
def deterministic_kernels(enabled: bool) -> Iterator[None]:
    """Context in which torch uses only deterministic CUDA kernels, if there is a GPU.

    The backward pass of packed attention then sums in a fixed order, which makes it slower.
    """
    if not (enabled and torch.cuda.is_available()):
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch refuses matrix products without it
    options: Any = torch.utils.deterministic
    was_enabled, fill = torch.are_deterministic_algorithms_enabled(), options.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    options.fill_uninitialized_memory = False  # a debugging aid that writes every new tensor twice
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_enabled)
        options.fill_uninitialized_memory = fill
