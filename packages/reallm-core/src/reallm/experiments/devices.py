"""Which device and number format a configuration means on this machine."""

from __future__ import annotations

import torch

from reallm.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device that `model.device` names; `auto` is a GPU if there is one.

    Raises:
        ConfigError: `cuda` is asked for where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device=cuda, but torch sees no GPU here; use model.device=cpu or auto")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that `model.dtype` names; `auto` is bfloat16 on a GPU that has it, else float32."""
    if name == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float32
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
