"""What users pass to a model, converted and checked: tokens and the bounds of sequences.

Lists and numpy arrays are as good as tensors. Errors name the argument, its value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reallm.errors import DataError, kind_of
from reallm.machine_errors import raise_shortage


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
        except (TypeError, ValueError, RuntimeError) as error:
            raise_shortage(error)
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
