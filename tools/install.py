"""Makes a tox environment ready: `python tools/install.py WORK_DIR [DISTRIBUTION ...]`.

Links the shared third-party environment and installs the named packages of ours, or `all`, from freshly built wheels,
so that the environment has exactly those and their declared dependencies are checked.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import build_dists
import shared_env
from workspace import packages


def main(work_dir: Path, distributions: list[str]) -> None:
    """Prepares the environment of the Python that runs this."""
    shared = shared_env.ensure(work_dir)
    shared_env.link(shared)
    if not distributions:
        return
    if distributions == ["all"]:
        distributions = [package.name for package in packages()]
    folder = build_dists.build_all(work_dir, shared_env.python(shared))
    wheels = [str(_wheel(folder, name)) for name in distributions]
    # `--no-deps`, since pip would reinstall what is present in the shared environment; `check` then says what lacks.
    _pip("install", "--quiet", "--no-index", "--no-deps", "--force-reinstall", *wheels)
    _pip("check")


def _wheel(folder: Path, distribution: str) -> Path:
    found = list(folder.glob(f"{distribution.replace('-', '_')}-*.whl"))
    if len(found) != 1:
        sys.exit(f"no wheel of '{distribution}' in {folder}: is there packages/{distribution}?")
    return found[0]


def _pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
