"""Checks that every kind of plugin shares: what it says of itself, and that looking at it costs nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
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
"""What takes seconds to import, and `reallm --help` and `reallm plugins` do without."""


class Offered(Protocol):
    """What these checks need to know of a subject."""

    @property
    def description(self) -> str:
        """What the plugin says of itself."""

    @property
    def table(self) -> str:
        """Where it says so: a line of the plugin, or the name of what it returns."""

    @property
    def light_modules(self) -> Sequence[str]:
        """Modules that are imported to look at the plugin; none if it was given as a class."""


@check()
def description(subject: Offered) -> str:
    """`reallm plugins show` has one line that says what it is"""
    text = subject.description
    if not text.strip():
        raise CheckFailed("a description of one line", "none", look_at=subject.table)
    if len(text.splitlines()) > 1:
        raise CheckFailed("a description of one line", f"{len(text.splitlines())} lines", look_at=subject.table)
    return text


@check()
def light_import(subject: Offered) -> str:
    """looking at the plugin imports neither torch nor transformers"""
    if not subject.light_modules:
        raise Skipped("check it by the name it is installed under, or name its classes as 'module:Class'")
    for module in subject.light_modules:
        found = _imported_with(module)
        if found:
            raise CheckFailed(
                f"`import {module}` imports neither {' nor '.join(HEAVY)}",
                f"it imports {' and '.join(found)}",
                look_at=f"the imports at the top of {module}; refer to heavy classes as 'module:Class'",
            )
    return f"{', '.join(subject.light_modules)} without {' and '.join(HEAVY)}"


def hook_place(offer: Offer) -> str:
    """Where a plugin says what it offers: `my_data/plugin.py:9 (reallm_datasets)`."""
    hook = KINDS[offer.kind].hook
    plugin = EntryPoint(offer.plugin.entries[0], offer.plugin.value, GROUP).load()  # imported before: it has an offer
    return location(getattr(plugin, hook, plugin))


def _imported_with(module: str) -> list[str]:
    """Which of `HEAVY` another process has after importing `module`."""
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=same_path(), capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CheckFailed(f"`import {module}` works in a process of its own", reason, look_at=module)
    return (done.stdout.splitlines() or [""])[-1].split()  # what the module itself prints comes before


def same_path(**variables: str) -> dict[str, str]:
    """The environment for another Python that imports from the same places."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path), **variables}
