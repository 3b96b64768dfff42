"""Files of tensors against those that safetensors writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from reallm.tensor_files import DTYPE_NAMES, file_pieces, save_tensors


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    of_dtypes = {
        f"of {dtype}": torch.randint(0, 2, (3, 2), generator=generator).to(dtype) for dtype in reversed(DTYPE_NAMES)
    }
    strides_of_zero = torch.from_numpy(np.array([], dtype=np.int16))
    return of_dtypes | {
        "a/b": torch.randn(5, 1, generator=generator, requires_grad=True),
        'é\n\x7f"\\/': torch.tensor(1.5),
        "none": torch.zeros(0, 3),
        "none either": strides_of_zero,
    }


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {"about": '{"é": [1]}'}])
def test_they_are_byte_for_byte_those_of_safetensors(tmp_path: Path, metadata: dict[str, str]) -> None:
    tensors, path = some_tensors(), tmp_path / "a.safetensors"
    save_tensors(tensors, path, metadata)
    assert path.read_bytes() == save({name: tensor.detach() for name, tensor in tensors.items()}, metadata or None)
    loaded = load_file(path)
    assert all(loaded[name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_a_file_without_tensors_is_that_of_safetensors() -> None:
    assert b"".join(file_pieces({}, {})) == save({})


def test_tensors_are_not_copied_and_may_share_memory() -> None:
    tensor = torch.arange(4)
    _, first, second = file_pieces({"a": tensor, "b": tensor}, {})
    tensor[0] = 7
    assert first[0] == second[0] == 7
