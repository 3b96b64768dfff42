"""What the tools share: where the packages lie, a lock, and folders that are built once."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_STAMP = ".complete"
_GENERATED = ("__pycache__", "*.egg-info", "build", "dist", ".*_cache")


def packages() -> list[Path]:
    """The folders of our distributions."""
    return sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))


def pyproject(package: Path) -> dict[str, Any]:
    """The parsed `pyproject.toml` of a package folder."""
    return tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))


def family_packages() -> list[str]:
    """The names of our distributions that offer model families."""
    return [package.name for package in packages() if any(name.startswith("family.") for name in _offers(package))]


def _offers(package: Path) -> Iterable[str]:
    entry_points: dict[str, dict[str, str]] = pyproject(package)["project"].get("entry-points", {})
    return entry_points.get("reallm", {})


def copy_sources(package: Path, to: Path) -> Path:
    """Copies a package folder as plain files: links followed, nothing that an earlier build has left behind."""
    return Path(shutil.copytree(package, to, symlinks=False, ignore=shutil.ignore_patterns(*_GENERATED)))


def sources(package: Path) -> list[Path]:
    """The files that `copy_sources` copies, sorted."""
    return sorted(
        path
        for path in package.rglob("*")
        if path.is_file()
        and not any(part.match(pattern) for part in _inner_parts(path, package) for pattern in _GENERATED)
    )


def digest(parts: Iterable[str | bytes]) -> str:
    """A hash of the parts and of where one ends and the next begins."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()


def built_once(folder: Path, key: str, build: Callable[[Path], None]) -> Path:
    """The folder as `build(folder)` makes it, built again only when `key` has changed.

    Several processes may ask at once: one builds, the others wait. The stamp is written last, so a build that
    was killed is begun anew.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / f"{folder.name}.lock"):
        stamp = folder / _STAMP
        if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == key):
            shutil.rmtree(folder, ignore_errors=True)
            build(folder)
            stamp.write_text(key, encoding="utf-8")
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock; the system releases it even if the process is killed."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _inner_parts(path: Path, package: Path) -> list[Path]:
    return [Path(part) for part in path.relative_to(package).parts]
