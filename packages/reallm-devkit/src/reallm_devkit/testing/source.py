"""Finds the line of a plugin's source that a report points its author to."""

from __future__ import annotations

import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from reallm.errors import PluginError
from reallm.references import TypeOrPath, resolve

KIT_PACKAGE = "reallm_devkit"
"""The package of the kit, whose lines are of no help to a plugin's author."""


def location(target: Any, method: str = "") -> str:
    """The file and line that define a class, function or method: `my_data/dataset.py:34 (MyDataset.__getitem__)`.

    Args:
        target: a class, function or module; any other object stands for its class.
        method: the name of a method of the class. If the class neither defines nor inherits it, the class is located.
    """
    if not isinstance(target, type | ModuleType) and not inspect.isroutine(target):
        target = type(target)
    found = inspect.unwrap(getattr(target, method, target)) if method else target
    for candidate in (found, target):
        try:
            file = inspect.getsourcefile(candidate)
            _, line = inspect.getsourcelines(candidate)
        except (TypeError, OSError):  # built in, or typed at a prompt
            continue
        name = getattr(candidate, "__qualname__", "")
        position = f"{display_path(file)}:{max(line, 1)}" if file else ""
        return f"{position} ({name})" if name else position
    return getattr(target, "__qualname__", repr(target))


def reference_location(reference: TypeOrPath, method: str = "") -> str:
    """The location of a class that a plugin refers to, or the reference itself if it cannot be imported."""
    try:
        return location(resolve(reference), method)
    except PluginError:
        return f"'{reference}'"


def reference_module(reference: TypeOrPath) -> str:
    """The module of a class that a plugin refers to, without importing it."""
    return reference.partition(":")[0] if isinstance(reference, str) else reference.__module__


def display_path(file: str | Path) -> str:
    """A path relative to the working directory if it is below it, absolute otherwise."""
    path = Path(file).resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def innermost_line(error: BaseException, module: str = "") -> str:
    """The innermost line of an exception's traceback that is in `module`, or else in its package; empty if none is.

    Args:
        error: the exception, with its traceback.
        module: the module of the plugin's class. If empty, any line counts that is not in the kit, Python or torch.
    """
    frames = [
        (
            frame.f_globals.get("__name__", ""),
            f"{display_path(frame.f_code.co_filename)}:{line} ({frame.f_code.co_qualname})",
        )
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    frames = [(name, line) for name, line in frames if not f"{name}.".startswith(f"{KIT_PACKAGE}.")]
    if module:
        in_package = [(name, line) for name, line in frames if _package(name) == _package(module)]
        lines = [line for name, line in in_package if name == module] or [line for _, line in in_package]
    else:
        lines = [line for name, line in frames if _package(name) not in {*sys.stdlib_module_names, "torch"}]
    return lines[-1] if lines else ""


def _package(module: str) -> str:
    return module.partition(".")[0]
