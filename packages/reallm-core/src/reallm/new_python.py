"""Starts modules of reallm in new processes of this Python, which import what this process would. Imports no torch."""

from __future__ import annotations

import sys
from pathlib import Path


def module_command(module: str) -> list[str]:
    """The command that runs a module, as `python -m` does.

    By itself `-m` would import what lies in the working folder, which the command `reallm` does not: the folder may be
    that of somebody else.
    """
    imports_from_working_folder = "" in sys.path or str(Path.cwd()) in sys.path
    return [sys.executable, *([] if imports_from_working_folder else ["-P"]), "-m", module]
