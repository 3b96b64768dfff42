"""`python build_backend.py wheels OUT FOLDER ...`: builds the wheels of source folders with setuptools.

With `sdists-and-wheels` the sdists, and the wheels from what is in these. Two builds run at a time, each in a process
forked from this one, which has imported setuptools: `python -m build` starts five that import it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tarfile
import tempfile
from functools import partial
from pathlib import Path

from setuptools import build_meta


def build(folder: str, *, out: str, with_sdist: bool) -> None:
    """Builds what is in one folder, in a process of its own, since setuptools leaves its marks in it."""
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(folder)
        if with_sdist:
            sdist = build_meta.build_sdist(out)
            with tarfile.open(Path(out, sdist)) as archive:
                archive.extractall(scratch, filter="data")
            os.chdir(Path(scratch, sdist.removesuffix(".tar.gz")))
        build_meta.build_wheel(out)
        os.chdir(folder)


def main(kind: str, out: str, folders: list[str]) -> None:
    """Builds all; an error names the folder in what setuptools says."""
    Path(out).mkdir(parents=True, exist_ok=True)
    one = partial(build, out=str(Path(out).resolve()), with_sdist=kind == "sdists-and-wheels")
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        pool.map(one, folders, chunksize=1)


if __name__ == "__main__":
    kind, out, *folders = sys.argv[1:]
    sys.argv[1:] = []  # setuptools reads it too
    main(kind, out, folders)
