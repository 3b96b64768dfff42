"""From a project to its files: templates filled in, and written as a whole or not at all."""

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


def rendered(project: Project) -> dict[str, str]:
    """Path within the package's folder -> content, sorted; from the templates for all kinds and those for this one.

    Templates lie where the files go, with `package` in the place of the package's name:
    `dataset/src/package/plugin.py.j2`.
    """
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    facts = {**asdict(project), "entry_point": project.entry_point}
    templates = resources.files("reallm_devkit.scaffold").joinpath("templates")
    texts = dict(sorted({**_texts(templates.joinpath("common")), **_texts(templates.joinpath(project.kind))}.items()))
    return {_target(path, project.package): environment.from_string(text).render(facts) for path, text in texts.items()}


def write(files: Mapping[str, str], folder: Path) -> None:
    """Write files into a folder that is not there yet, or empty. Killed at any moment, it is complete or as before.

    Raises:
        ConfigError: if something is there already.
        DataError: if the folder cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is there already and not empty; remove it, or give another place with --dir")
    with atomic_folder(folder) as temporary:
        for name, content in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")


def _target(path: str, package: str) -> str:
    return path.removesuffix(_SUFFIX).replace("/package/", f"/{package}/")


def _texts(folder: Traversable, prefix: str = "") -> dict[str, str]:
    """The texts of all templates under a folder, which may lie in a zip file, by path."""
    texts: dict[str, str] = {}
    for item in folder.iterdir():
        if item.is_dir():
            texts.update(_texts(item, f"{prefix}{item.name}/"))
        elif item.name.endswith(_SUFFIX):
            texts[f"{prefix}{item.name}"] = item.read_text(encoding="utf-8")
    return texts
