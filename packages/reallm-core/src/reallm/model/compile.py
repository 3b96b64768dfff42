"""`torch.compile` for the blocks of a model, in a way that survives lengths that change with every batch.

All blocks share what is compiled. The number of packed tokens is a symbol in it, and attention, whose code depends on
how long each sequence is, runs between the compiled parts as it always does.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from reallm.errors import ConfigError
from reallm.model.attention.functional import attend_rotated
from reallm.model.block import call_block
from reallm.model.forward_context import ForwardContext


@dataclass(frozen=True)
class CompiledBlocks:
    """How a forward pass differs with compiled blocks."""

    call: Callable[..., Tensor]
    """`call(block, x, context, None)` in place of `block(x, context, None)`."""
    attention: Callable[..., Tensor]
    """In place of `attend_rotated`: the same, and not compiled."""

    def prepare(self, x: Tensor, context: ForwardContext) -> None:
        """Say which dim changes from call to call, so that the first lengths are not compiled for themselves alone."""
        for tensor in (x, *(part for rotation in context.rotations for part in (rotation.cos, rotation.sin))):
            _changes_length(tensor)


def compile_blocks() -> CompiledBlocks:
    """Nothing is compiled before the first call; then it takes some ten seconds, in training and in evaluation."""

    def attention(*inputs: object) -> Tensor:
        attended = attend_rotated(*inputs)  # type: ignore[arg-type]
        _changes_length(attended)
        return attended

    return CompiledBlocks(torch.compile(call_block), torch.compiler.disable(attention))


def check_compiler(device: torch.device) -> None:
    """Whether what `torch.compile` calls is installed.

    Raises:
        ConfigError: something is missing; the line says what, and how to do without.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        variable, language, usual = "CC", "C", ["gcc", "clang"]
    else:
        variable, language, usual = "CXX", "C++", ["clang++" if sys.platform == "darwin" else "g++"]
    names = [os.environ[variable]] if os.environ.get(variable) else usual
    if not any(shutil.which(name) for name in names):
        missing = f"a {language} compiler, and there is no {' or '.join(names)}; install one, name it in {variable}"
    elif not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        missing = "Python's headers (Python.h), which are not installed; install them (on Debian: python3-dev)"
    elif on_gpu and find_spec("triton") is None:
        missing = "Triton, which is not installed; install it (pip install triton)"
    else:
        return
    raise ConfigError(f"model.compile=true needs {missing}, or leave model.compile out")


def _changes_length(tensor: Tensor) -> None:
    torch._dynamo.maybe_mark_dynamic(tensor, 0)
