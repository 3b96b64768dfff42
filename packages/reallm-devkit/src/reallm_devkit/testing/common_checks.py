"""Checks that all kits share: a plugin has a description, and importing it is fast."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from reallm.plugins.finder import GROUP
from reallm.plugins.kinds import KINDS
from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.source import location

if TYPE_CHECKING:
    from reallm.plugins.loader import Offer

HEAVY = ("torch", "transformers")
"""Modules that take seconds to import, and that `reallm --help` and `reallm plugins` never import."""


class PluginSubject(Protocol):
    """The attributes of a subject that these checks read."""

    @property
    def description(self) -> str:
        """The plugin's description of what it offers."""

    @property
    def table(self) -> str:
        """The location of the description: a line of the plugin, or the name of the object it returns."""

    @property
    def light_modules(self) -> Sequence[str]:
        """Modules that are imported to list the plugin; empty if it was given as a class."""


@check()
def description(subject: PluginSubject) -> str:
    """`reallm plugins show` has one line that says what it is"""
    text = subject.description
    if not text.strip():
        raise CheckFailed("a description of one line", "none", look_at=subject.table)
    if len(text.splitlines()) > 1:
        raise CheckFailed("a description of one line", f"{len(text.splitlines())} lines", look_at=subject.table)
    return text


@check()
def light_import(subject: PluginSubject) -> str:
    """listing the plugin imports neither torch nor transformers"""
    if not subject.light_modules:
        raise Skipped("check it by the name it is installed under, or name its classes as 'module:Class'")
    for module in subject.light_modules:
        heavy = _heavy_imports(module)
        if heavy:
            raise CheckFailed(
                f"`import {module}` imports neither {' nor '.join(HEAVY)}",
                f"it imports {' and '.join(heavy)}",
                look_at=f"the imports at the top of {module}; refer to heavy classes as 'module:Class'",
            )
    return f"{', '.join(subject.light_modules)} without {' and '.join(HEAVY)}"


def hook_location(offer: Offer) -> str:
    """The location of the hook that returns the offer: `my_data/plugin.py:9 (reallm_datasets)`."""
    hook = KINDS[offer.kind].hook
    plugin = EntryPoint(
        offer.plugin.entries[0], offer.plugin.value, GROUP
    ).load()  # already imported, since it has an offer
    return location(getattr(plugin, hook, plugin))


@lru_cache
def _heavy_imports(module: str) -> list[str]:
    """The modules of `HEAVY` that a new process has imported after importing `module`; asked once for each."""
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CheckFailed(f"`import {module}` works in a process of its own", reason, look_at=module)
    return (done.stdout.splitlines() or [""])[-1].split()  # after whatever the module itself prints


def subprocess_environment(**variables: str) -> dict[str, str]:
    """The environment of a Python subprocess that has the same `sys.path`, with `variables` set."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path), **variables}
