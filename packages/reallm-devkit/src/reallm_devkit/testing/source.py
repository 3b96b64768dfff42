"""Where in a plugin's code something is: the line that a report tells the author to look at."""

from __future__ import annotations

import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from reallm.errors import PluginError
from reallm.references import TypeOrPath, resolve

OWN = "reallm_devkit"
"""The kit's own package, whose lines help no author."""


def location(target: Any, method: str = "") -> str:
    """`my_data/dataset.py:34 (MyDataset.__getitem__)`: where a class or function, or a method of it, is written.

    Args:
        target: a class, function or module; of any other object its class.
        method: a name in the class. If the class does not define it, even by inheritance, the class is the place.
    """
    if not isinstance(target, type | ModuleType) and not inspect.isroutine(target):
        target = type(target)
    found = inspect.unwrap(getattr(target, method, target)) if method else target
    for one in (found, target):
        try:
            file = inspect.getsourcefile(one)
            _, line = inspect.getsourcelines(one)
        except (TypeError, OSError):  # built in, or typed at a prompt
            continue
        name = getattr(one, "__qualname__", "")
        place = f"{shown(file)}:{max(line, 1)}" if file else ""
        return f"{place} ({name})" if name else place
    return getattr(target, "__qualname__", repr(target))


def reference_location(reference: TypeOrPath, method: str = "") -> str:
    """The same of a class that a plugin names, or the reference itself where it cannot be imported."""
    try:
        return location(resolve(reference), method)
    except PluginError:
        return f"'{reference}'"


def reference_module(reference: TypeOrPath) -> str:
    """The module of a class that a plugin names, without importing it."""
    return reference.partition(":")[0] if isinstance(reference, str) else reference.__module__


def shown(file: str | Path) -> str:
    """A path below the working directory as it is from there, any other whole."""
    path = Path(file).resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def innermost(error: BaseException, module: str = "") -> str:
    """The innermost line of a traceback that is in `module`, or else in its package; empty if none is.

    Args:
        error: with the traceback it was caught with.
        module: that the plugin's class is in. Without one, any line counts but those of the kit, Python and torch.
    """
    frames = [
        (frame.f_globals.get("__name__", ""), f"{shown(frame.f_code.co_filename)}:{line} ({frame.f_code.co_qualname})")
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    frames = [(name, place) for name, place in frames if not f"{name}.".startswith(f"{OWN}.")]
    if module:
        of_package = [(name, place) for name, place in frames if _package(name) == _package(module)]
        places = [place for name, place in of_package if name == module] or [place for _, place in of_package]
    else:
        places = [place for name, place in frames if _package(name) not in {*sys.stdlib_module_names, "torch"}]
    return places[-1] if places else ""


def _package(module: str) -> str:
    return module.partition(".")[0]
