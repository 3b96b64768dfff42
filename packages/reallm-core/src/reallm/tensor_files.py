"""Writes safetensors files with the permissions of any other new file."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write contiguous CPU tensors as one safetensors file, in its own order of tensors.

    safetensors writes a temporary file that only its owner may read, and renames it. The file gets the mode here that
    the umask gives to new files, so that those who may read the rest of a folder may read it too.

    Raises:
        OSError: the file cannot be written.
        safetensors.SafetensorError: likewise.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(dict(tensors), path, dict(metadata))
    path.chmod(mode)
