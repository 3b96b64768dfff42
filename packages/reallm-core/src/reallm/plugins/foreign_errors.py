"""Formats exceptions of plugins in one line: the error, its place in the plugin, and a remedy if one is known."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from textwrap import shorten
from typing import Any

from reallm.plugins.finder import Plugin

LENGTH = 300
"""Maximum length, in characters, of an exception's message."""


def shortened(message: str) -> str:
    """A message without line breaks, shortened to `LENGTH`."""
    return shorten(message, LENGTH, placeholder=" ...")


def describe_error(error: BaseException, plugin: Plugin) -> str:
    """`ValueError: no such thing (my_plugin/plugin.py:12)`, with the innermost line of the plugin's code."""
    message = shortened(str(error))
    return f"{type(error).__name__}{': ' if message else ''}{message}{_source_line(error, plugin)}"


def missing_module(error: ModuleNotFoundError, plugin: Plugin) -> str:
    """The error for a plugin that imports a module which does not exist, with what to install or reinstall."""
    if error.name is None:  # not raised by the import system
        return f"cannot be imported: {describe_error(error, plugin)}"
    package = error.name.partition(".")[0]
    if package == _package(plugin):
        return f"its module '{error.name}' does not exist; pip install --force-reinstall {plugin.distribution}"
    if package in sys.modules or importlib.util.find_spec(package):
        return f"needs the module '{error.name}', which '{package}' here lacks; pip install --upgrade {package}"
    return f"needs the module '{error.name}', which is not installed; pip install {package}"


def type_name(value: Any) -> str:
    """`a list`, `the class MyDataset`."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a value of type {type(value).__name__}"


def _source_line(error: BaseException, plugin: Plugin) -> str:
    package = _package(plugin)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if package in path.with_suffix("").parts:
            return f" ({'/'.join(path.parts[-2:])}:{frame.lineno})"
    return ""


def _package(plugin: Plugin) -> str:
    return plugin.module.partition(".")[0]
