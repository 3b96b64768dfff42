"""Renders the templates of a project, and writes its files all at once or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from reallm.atomic_files import atomic_folder
from reallm.errors import ConfigError
from reallm_devkit.scaffold.project import Project

_SUFFIX = ".j2"


def render(project: Project) -> dict[str, str]:
    """Render the common templates and those of the kind: path within the project's folder -> content, sorted.

    A template has the path of its file, with `package` instead of the package's name:
    `dataset/src/package/plugin.py.j2`.
    """
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    variables = {**asdict(project), "entry_point": project.entry_point, "stem": project.stem}
    templates = resources.files("reallm_devkit.scaffold").joinpath("templates")
    texts = dict(sorted({**_texts(templates.joinpath("common")), **_texts(templates.joinpath(project.kind))}.items()))
    return {
        _target(path, project.package): environment.from_string(text).render(variables) for path, text in texts.items()
    }


def write_files(files: Mapping[str, str], folder: Path) -> None:
    """Write files into a new or empty folder. If the process is killed, the folder is complete or unchanged.

    Raises:
        ConfigError: if the folder is not empty.
        DataError: if the folder cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} exists and is not empty; remove it, or give another folder with --dir")
    with atomic_folder(folder) as temporary:
        for name, content in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")


def _target(path: str, package: str) -> str:
    return path.removesuffix(_SUFFIX).replace("/package/", f"/{package}/")


def _texts(folder: Traversable, prefix: str = "") -> dict[str, str]:
    """Path -> text of all templates below a folder, which may be in a zip file."""
    texts: dict[str, str] = {}
    for item in folder.iterdir():
        if item.is_dir():
            texts.update(_texts(item, f"{prefix}{item.name}/"))
        elif item.name.endswith(_SUFFIX):
            texts[f"{prefix}{item.name}"] = item.read_text(encoding="utf-8")
    return texts
