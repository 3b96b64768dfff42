"""Holds what `reallm plugins new` writes to ruff and to mypy's strictest: `python tools/check_templates.py`.

Needs reallm-devkit, ruff and mypy. Ruff runs with its own defaults, as for an author without settings.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from workspace import ROOT

PACKAGES = (
    ("dataset", "my-data"),
    ("logger", "my-log"),
    ("family", "my-model"),
    *(
        ("family", f"my-{model_type.replace('_', '-')}", "--model-type", model_type)
        # fused weights and partial rotation; experts; windows; what no table can say
        for model_type in ("gpt_neox", "mixtral", "gemma3_text", "mamba")
    ),
)


def main(folder: Path) -> int:
    """Writes the packages into `folder` and checks them; the number of commands that found something."""
    for arguments in PACKAGES:
        subprocess.run([sys.executable, "-m", "reallm", "plugins", "new", *arguments], cwd=folder, check=True)
    sources = sorted(map(str, folder.rglob("*.py")))
    packages = os.pathsep.join(map(str, folder.glob("*/src")))
    mypy = ["mypy", "--config-file", str(ROOT / "mypy.ini"), "--cache-dir", str(ROOT / ".mypy_cache")]
    commands = (
        ["ruff", "check", "--isolated", str(folder)],
        ["ruff", "format", "--isolated", "--check", str(folder)],
        *([*mypy, *(path for path in sources if f"/{package.name}/" in path)] for package in folder.iterdir()),
    )
    environment = {**os.environ, "MYPYPATH": packages}
    done = [subprocess.run([sys.executable, "-m", *command], env=environment, check=False) for command in commands]
    return sum(bool(one.returncode) for one in done)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(Path(temporary)))
