"""Holds what `reallm plugins new` writes to ruff and to mypy's strictest: `python tools/check_templates.py`.

Needs reallm-devkit, ruff and mypy. Ruff runs with its own defaults, as for an author without settings.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from reallm.cli.main import run as reallm
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
    with contextlib.chdir(folder):
        for arguments in PACKAGES:
            if code := reallm(["plugins", "new", *arguments]):
                return code
    packages = sorted(folder.iterdir())
    environment = {**os.environ, "MYPYPATH": os.pathsep.join(str(package / "src") for package in packages)}
    sources = [str(path) for package in packages for path in sorted((package / "src").rglob("*.py"))]
    commands = (
        ["ruff", "check", "--isolated", str(folder)],
        ["ruff", "format", "--isolated", "--check", str(folder)],
        ["mypy", "--config-file", str(ROOT / "mypy.ini"), "--cache-dir", str(ROOT / ".mypy_cache"), *sources,
         *(str(path) for package in packages for path in _tests(package))],
    )  # fmt: skip
    done = [subprocess.run([sys.executable, "-m", *command], env=environment, check=False) for command in commands]
    return sum(bool(one.returncode) for one in done)


def _tests(package: Path) -> list[Path]:
    """The package's tests under names of their own, as mypy wants them of modules that it checks together."""
    return [
        path.rename(path.with_name(f"{path.stem}_{package.name.replace('-', '_')}.py"))
        for path in sorted((package / "tests").glob("*.py"))
    ]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(Path(temporary)))
