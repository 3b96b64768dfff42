"""`python build.py WHEELS SOURCE ...`: builds the wheels of these source folders, all in one process, for speed."""

from __future__ import annotations

import os
import sys

from setuptools import build_meta

if __name__ == "__main__":
    wheels, *sources = sys.argv[1:]
    sys.argv[1:] = []  # setuptools reads it too
    for source in sources:
        os.chdir(source)
        build_meta.build_wheel(wheels)
