"""Builds the sdist and the wheel of every package, once for a given state of the sources."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from workspace import ROOT, built_once, copy_sources, digest, packages, sources


def build_all(work_dir: Path, python: Path) -> Path:
    """The folder with all sdists and wheels. `python` has `build` and `setuptools`."""
    files = [path for package in packages() for path in sources(package)]
    key = digest(part for path in files for part in (str(path.relative_to(ROOT)), path.read_bytes()))
    return built_once(work_dir / "dists", key, lambda folder: _build_all(folder, python))


def build(package: Path, out: Path, python: Path, *, only_wheel: bool = False) -> None:
    """Builds one package from a clean copy: the sdist, and the wheel from that sdist; or the wheel directly.

    Raises:
        SystemExit: with what the build printed, if it failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = copy_sources(package, Path(scratch) / package.name)
        kinds = ["--wheel"] if only_wheel else []
        command = [str(python), "-m", "build", "--no-isolation", "--outdir", str(out), *kinds, str(copy)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"building {package.name} failed:\n{done.stdout}")


def _build_all(folder: Path, python: Path) -> None:
    print(f"building {len(packages())} packages into {folder}", flush=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda package: build(package, folder, python), packages()))
