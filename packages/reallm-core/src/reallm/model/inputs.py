"""What users pass to a model, converted and checked: dtypes, devices, tokens and the bounds of sequences.

Lists and numpy arrays are as good as tensors. Errors name the argument, its value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reallm.errors import ConfigError, DataError, did_you_mean, kind_of

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


def as_dtype_or_device(name: str) -> torch.dtype | torch.device:
    """The dtype or the device of this name.

    Raises:
        ConfigError: there is neither.
    """
    known = name.removeprefix("torch.").lower()
    return as_dtype(name) if known in DTYPES or known in _SHORT_DTYPES else as_device(name)


def as_tokens(value: Any, vocab_size: int, name: str = "tokens") -> Tensor:
    """Token ids [T] of a vocabulary, given as a tensor, a list or an array of integers.

    Raises:
        DataError: they are not integers in one dimension, or one is not in the vocabulary; names the first.
    """
    tokens = _as_integers(value, name, "[T]")
    if tokens.dtype != torch.int32:
        tokens = tokens.long()  # what embeddings take
    check_vocabulary(tokens, vocab_size, name)
    return tokens


def as_cu_seqlens(value: Any) -> Tensor:
    """Bounds [S+1] of packed sequences, given as a tensor, a list or an array of integers.

    Raises:
        DataError: they are not integers in one dimension.
    """
    return _as_integers(value, "cu_seqlens", "[S+1], from 0 to the number of tokens")


def check_vocabulary(tokens: Tensor, vocab_size: int, name: str = "tokens") -> None:
    """Check that all tokens have a row in the embedding; on a GPU an index outside it would end the process's CUDA.

    Raises:
        DataError: a token is not in the vocabulary; names the first, its position and the vocabulary's size.
    """
    if not tokens.numel():
        return
    lowest, highest = torch.stack(tokens.aminmax()).tolist()  # a GPU is waited for once
    if lowest >= 0 and highest < vocab_size:
        return
    position = int(((tokens < 0) | (tokens >= vocab_size)).nonzero()[0])
    raise DataError(
        f"{name}[{position}] is {int(tokens[position])}, but the model has tokens 0 to {vocab_size - 1}; take the "
        "tokenizer that belongs to it"
    )


def as_prompts(prompts: Any) -> list[str | list[int]]:
    """Prompts for generation: texts, or token ids given as lists, tensors or arrays.

    Raises:
        DataError: it is not a list of such prompts; says how to write it.
    """
    if isinstance(prompts, str):
        raise DataError('prompts must be a list; write generate(["..."]) for a single text')
    if prompts is None or isinstance(prompts, dict) or not hasattr(prompts, "__iter__"):
        raise DataError(f"prompts must be a list of texts or of lists of token ids, not {kind_of(prompts)}")
    found: list[str | list[int]] = []
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            found.append(prompt)
        elif isinstance(prompt, Tensor | np.ndarray | Sequence) and getattr(prompt, "ndim", 1) == 1:
            found.append(_as_integers(prompt, f"prompts[{index}]", "[T]").tolist())
        elif isinstance(prompt, int | np.integer) or getattr(prompt, "ndim", 1) == 0:
            raise DataError("prompts must be a list of prompts; write generate([ids]) for the token ids of one")
        else:
            raise DataError(f"prompts[{index}] must be text or a list of token ids, not {kind_of(prompt)}")
    return found


def _as_integers(value: Any, name: str, shape: str) -> Tensor:
    if isinstance(value, Tensor):
        found = value
    else:
        try:
            found = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise DataError(f"{name} must be integers {shape}, not {kind_of(value)}") from None
        if not found.numel() and isinstance(value, list | tuple):
            found = found.long()  # of an empty list
    if found.dim() != 1:
        raise DataError(
            f"{name} must be one-dimensional, {shape}, but its shape is {list(found.shape)}; sequences are packed one "
            "after another, without padding"
        )
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise DataError(f"{name} must be integers {shape}, but its dtype is {str(found.dtype).removeprefix('torch.')}")
    return found
