"""Chooses the names of a new plugin package. Pure: writes nothing and imports no plugin.

plan_project("dataset", "my-data")  ->  Project(distribution="reallm-my-data", package="reallm_my_data", ...)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from reallm.errors import ConfigError, did_you_mean
from reallm.plugins.finder import canonical
from reallm_devkit.scaffold.architecture import Architecture
from reallm_devkit.scaffold.family import Draft

TEMPLATES = ("dataset", "family", "algorithm", "logger", "callback", "reward")
"""The kinds of plugins that have templates."""

_NAME = r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*"


@dataclass(frozen=True)
class Project:
    """The variables of the templates.

    Attributes:
        kind: the kind of plugin, one of `TEMPLATES`.
        name: the name that the plugin offers: `my-data`.
        distribution: the name for pip: `reallm-my-data`.
        package: the name for import: `reallm_my_data`.
        class_name: the name of the main class: `MyDataDataset`; for a family, only that of its test.
        core: the oldest version of reallm-core that it works with.
        hook_api: the version of the hook API that it is made for.
        architecture: for a family, what transformers declares.
        draft: for a family, its drafted tables.
    """

    kind: str
    name: str
    distribution: str
    package: str
    class_name: str
    core: str
    hook_api: str
    architecture: Architecture | None = None
    draft: Draft | None = None

    @property
    def entry_point(self) -> str:
        """The name of the entry point: `dataset.my-data`."""
        return f"{self.kind}.{self.name}"

    @property
    def stem(self) -> str:
        """The name of the main class without the kind: `MyData`."""
        return self.class_name.removesuffix(self.kind.capitalize())


def plan_project(kind: str, name: str, *, core: str, hook_api: str) -> Project:
    """Choose the names of a new package; a family still needs `architecture` and `draft`.

    Raises:
        ConfigError: if there is no such kind, or the name is not allowed.
    """
    if kind not in TEMPLATES:
        hint = did_you_mean(kind, TEMPLATES) or f"; there are {', '.join(TEMPLATES)}"
        raise ConfigError(f"there is no kind of plugin '{kind}'{hint}")
    _check_name(kind, name)
    prefix = "reallm-hf-" if kind == "family" else "reallm-"
    distribution = prefix + canonical(name)
    # A family's name is part of names of methods, `ReaLModel.from_my_model`.
    offered = _underscored(name) if kind == "family" else name
    class_name = _class_name(name, kind.capitalize())
    return Project(kind, offered, distribution, _underscored(distribution), class_name, core, hook_api)


def _check_name(kind: str, name: str) -> None:
    if re.fullmatch(_NAME, name, re.ASCII) is None:
        better = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")
        hint = f", such as '{better}'" if re.fullmatch(_NAME, better) else ""
        raise ConfigError(f"'{name}' cannot name a package; begin with a letter, use a-z, 0-9 and dashes{hint}")
    for prefix in ("reallm-hf-", "reallm-"):
        rest = canonical(name).removeprefix(prefix)
        if rest != canonical(name):
            raise ConfigError(f"'{name}': leave '{prefix}' out, which the package gets anyway: new {kind} {rest}")


def _underscored(name: str) -> str:
    return re.sub(r"[-.]", "_", name)


def _class_name(name: str, suffix: str) -> str:
    """`my-data` -> `MyDataDataset`, `my-dataset` -> `MyDataset`."""
    return "".join(word.capitalize() for word in re.split(r"[-_.]", name)).removesuffix(suffix) + suffix
