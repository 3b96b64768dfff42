"""`torch.compile` for the blocks of a model, without recompiling for the lengths of each batch.

All blocks share the compiled code. The number of packed tokens is dynamic in it, and attention, which depends on the
length of each sequence, runs eagerly between the compiled parts.
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
    """The functions that a forward pass calls in place of blocks and attention when they are compiled."""

    call: Callable[..., Tensor]
    """`call(block, x, context, None)` in place of `block(x, context, None)`."""
    attention: Callable[..., Tensor]
    """`attend_rotated`, excluded from compilation."""

    def prepare(self, x: Tensor, context: ForwardContext) -> None:
        """Mark the token dim of the inputs as dynamic, so that the first lengths are not compiled as constants."""
        for tensor in (x, *(each for rotation in context.rotations for each in (rotation.cos, rotation.sin))):
            _mark_tokens_dynamic(tensor)


def compile_blocks() -> CompiledBlocks:
    """Compiled blocks; the first call in training and in evaluation compiles them, which takes some ten seconds."""

    def attention(*inputs: object) -> Tensor:
        attended = attend_rotated(*inputs)  # type: ignore[arg-type]
        _mark_tokens_dynamic(attended)
        return attended

    return CompiledBlocks(torch.compile(call_block), torch.compiler.disable(attention))


def check_compiler(device: torch.device) -> None:
    """Check that the compilers that `torch.compile` needs on a device are installed.

    Raises:
        ConfigError: something is missing; says what, and how to proceed without it.
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


def _mark_tokens_dynamic(tensor: Tensor) -> None:
    torch._dynamo.maybe_mark_dynamic(tensor, 0)
