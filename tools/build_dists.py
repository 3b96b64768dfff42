"""Builds the sdist and the wheel of every package, once for a given state of the sources."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from workspace import ROOT, built_once, copy_sources, digest, packages, sources

BACKEND = Path(__file__).with_name("build_backend.py")


def build_all(work_dir: Path, python: Path) -> Path:
    """The folder with all sdists and wheels. `python` has `setuptools`."""
    files = [path for package in packages() for path in sources(package)]
    key = digest(part for path in files for part in (str(path.relative_to(ROOT)), path.read_bytes()))
    return built_once(work_dir / "dists", key, lambda folder: _build_all(folder, python))


def build(built: Sequence[Path], out: Path, python: Path, *, only_wheels: bool = False) -> None:
    """Builds packages from clean copies: the sdists, and the wheels from these sdists; or the wheels directly.

    Raises:
        SystemExit: with what the build printed, if it failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copies = [str(copy_sources(package, Path(scratch) / package.name)) for package in built]
        command = [str(python), str(BACKEND), "wheels" if only_wheels else "sdists-and-wheels", str(out), *copies]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"building failed:\n{done.stdout}")


def _build_all(folder: Path, python: Path) -> None:
    print(f"building {len(packages())} packages into {folder}", flush=True)
    build(packages(), folder, python)
