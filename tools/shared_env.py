"""The third-party distributions (torch is large), installed once and seen by every tox environment.

`ensure` makes a virtual environment with all that our packages and their tests need from others, pinned by
`constraints.txt`. `link` lets the Python that runs this see it, through a `.pth` file: our own packages are then
installed into each tox environment alone, and `pip check` there still says whether what they declare is present.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from workspace import ROOT, built_once, digest, packages, pyproject

CONSTRAINTS = ROOT / "constraints.txt"
TEST_REQUIREMENTS = ROOT / "tests" / "requirements.txt"
APART = frozenset({"trackio", "wandb"})
"""Extras that are left out, since they bring many distributions: the tox environment `loggers` installs them."""


def requirements() -> list[str]:
    """What our packages declare of others' distributions, extras included but for those `APART`."""
    projects = [pyproject(package)["project"] for package in packages()]
    own = {project["name"] for project in projects}
    declared: set[str] = set()
    for project in projects:
        declared.update(project["dependencies"])
        extras = project.get("optional-dependencies", {})
        declared.update(*(needed for extra, needed in extras.items() if extra not in APART))
    return sorted(one for one in declared if not any(one.startswith(name) for name in own))


def ensure(work_dir: Path) -> Path:
    """The folder of the shared environment, made if it is missing or if what it is made from has changed."""
    wanted = requirements()
    key = digest([*wanted, CONSTRAINTS.read_bytes(), TEST_REQUIREMENTS.read_bytes(), sys.version, sys.base_prefix])
    return built_once(work_dir / "shared", key, lambda folder: _make(folder, wanted))


def python(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / "bin" / "python"


def link(folder: Path) -> None:
    """Appends the shared environment's site-packages to `sys.path` of the Python that runs this, for good."""
    bases = {"base": str(folder), "platbase": str(folder)}
    shared = dict.fromkeys(sysconfig.get_path(kind, "venv", bases) for kind in ("purelib", "platlib"))
    own = Path(sysconfig.get_path("purelib"))
    (own / "shared.pth").write_text("".join(f"{path}\n" for path in shared), encoding="utf-8")


def _make(folder: Path, wanted: list[str]) -> None:
    print(f"installing the third-party distributions into {folder}, once: about a minute", flush=True)
    venv.create(folder, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python(folder)), "install", "--quiet", "--no-input"]
    pip += ["--no-compile"]  # Python compiles what is imported, a part of it
    subprocess.run([*pip, "-c", str(CONSTRAINTS), "-r", str(TEST_REQUIREMENTS), *wanted], check=True)
