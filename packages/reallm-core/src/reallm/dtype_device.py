"""Dtypes and devices, given as torch's objects or by their names. Errors name the argument and what is allowed."""

from __future__ import annotations

from typing import Any

import torch

from reallm.errors import ConfigError, did_you_mean, kind_of

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
DEVICES = ("cpu", "cuda", "meta")

_SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64", "half": "float16",
                 "float": "float32", "double": "float64"}  # fmt: skip


def as_dtype(value: Any, name: str = "dtype") -> torch.dtype:
    """A dtype of parameters, given as one or as text: `"bfloat16"`.

    Raises:
        ConfigError: it is not a dtype of floating-point numbers.
    """
    if isinstance(value, torch.dtype):
        if value in DTYPES.values():
            return value
        text = str(value).removeprefix("torch.")
        raise ConfigError(f"{name}={text} cannot be the dtype of parameters; use one of {', '.join(DTYPES)}")
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a torch.dtype or its name, not {kind_of(value)}")
    text = value.removeprefix("torch.")
    if text not in DTYPES:
        meant = _SHORT_DTYPES.get(text.lower())
        hint = f"; did you mean '{meant}'?" if meant else did_you_mean(text.lower(), DTYPES)
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(DTYPES)}{hint}")
    return DTYPES[text]


def as_device(value: Any, name: str = "device") -> torch.device:
    """A device, given as one or as text: `"cuda:0"`.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    if not isinstance(value, torch.device | str):
        raise ConfigError(f"{name} must be a torch.device or its name, such as 'cuda:0', not {kind_of(value)}")
    try:
        device = torch.device(value)
    except RuntimeError:
        meant = "cuda" if str(value).lower().startswith("gpu") else None
        hint = f"; did you mean '{meant}'?" if meant else did_you_mean(str(value), DEVICES)
        raise ConfigError(f"{name}={value!r} is not a device; write 'cpu', 'cuda' or 'cuda:0'{hint}") from None
    if device.type == "cuda":
        n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not n_gpus:
            raise ConfigError(f"{name}='{device}', but torch sees no GPU here; write {name}='cpu'")
        if device.index is not None and device.index >= n_gpus:
            seen = "one GPU" if n_gpus == 1 else f"{n_gpus} GPUs"
            raise ConfigError(f"{name}='{device}', but torch sees only {seen} here, from cuda:0 to cuda:{n_gpus - 1}")
    return device


def device_type(name: str) -> str:
    """The kind of device that a value of `model.device` means here: `auto` is a GPU if there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def as_dtype_or_device(name: str) -> torch.dtype | torch.device:
    """The dtype or the device of this name.

    Raises:
        ConfigError: there is neither.
    """
    known = name.removeprefix("torch.").lower()
    return as_dtype(name) if known in DTYPES or known in _SHORT_DTYPES else as_device(name)
