"""Lets the Python that runs this import our packages from their folders, for tools that read code and do not run it."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from workspace import packages


def main() -> None:
    """Appends `src` of every package to `sys.path` of this Python's environment, for good."""
    folders = [str(package / "src") for package in packages()]
    Path(sysconfig.get_path("purelib"), "sources.pth").write_text("".join(f"{path}\n" for path in folders), "utf-8")


if __name__ == "__main__":
    main()
