"""Dtypes and devices by their names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reallm.dtype_device import as_device, as_dtype, as_dtype_or_device
from reallm.errors import ConfigError


@pytest.mark.parametrize("value", [torch.bfloat16, "bfloat16", "torch.bfloat16"])
def test_a_dtype_by_its_name(value: Any) -> None:
    assert as_dtype(value) is torch.bfloat16


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("bf16", "dtype='bf16' is not one of float32, bfloat16, float16, float64; did you mean 'bfloat16'?"),
        ("bflaot16", "did you mean 'bfloat16'?"),
        ("int8", "dtype='int8' is not one of float32, bfloat16, float16, float64"),
        (torch.int8, "dtype=int8 cannot be the dtype of parameters; use one of float32,"),
        (16, "dtype must be a torch.dtype or its name, not an int"),
    ],
)
def test_what_is_not_a_dtype(value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        as_dtype(value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("gpu", "device='gpu' is not a device; write 'cpu', 'cuda' or 'cuda:0'; did you mean 'cuda'?"),
        (0, "device must be a torch.device or its name, such as 'cuda:0', not an int"),
        (None, "device must be a torch.device or its name, such as 'cuda:0', not None"),
    ],
)
def test_what_is_not_a_device(value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        as_device(value)
    assert str(caught.value) == said


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="^device='cuda:3', but torch sees no GPU here; write device='cpu'$"):
        as_device("cuda:3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="^device='cuda:3', but torch sees only 2 GPUs here, from cuda:0 to cuda:1$"):
        as_device("cuda:3")
    assert as_device("cuda:1") == torch.device("cuda", 1)


def test_a_dtype_or_a_device() -> None:
    assert as_dtype_or_device("float16") is torch.float16
    assert as_dtype_or_device("cpu") == torch.device("cpu")
