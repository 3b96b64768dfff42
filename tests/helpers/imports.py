"""Finds out which modules a program imports."""

from __future__ import annotations

import subprocess
import sys


def imported_by(program: str, *modules: str) -> list[str]:
    """Those of `modules` that a new Python process has imported after it has run `program`."""
    look = f"import sys; print(*[name for name in {modules!r} if name in sys.modules])"
    code = f"{program}\n{look}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
