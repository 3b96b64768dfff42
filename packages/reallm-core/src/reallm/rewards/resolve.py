"""Finds the reward function that a setting names."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from reallm.arguments import as_path
from reallm.errors import PluginError, RewardError
from reallm.plugins import registry
from reallm.references import FUNCTION, location_of
from reallm.rewards.functions import VERL, load, needed_columns


@dataclass(frozen=True)
class RewardFunction:
    """A reward function that a setting names."""

    name: str
    """As the setting names it."""
    location: str
    """Where every process can import it from; see `reallm.rewards.functions`."""
    columns: tuple[str, ...]
    """Columns of rows that it cannot do without."""


def resolve(name: str) -> RewardFunction:
    """The reward function that is named: an installed one, `package.module:function`, `file.py:function`, or one of
    these after `verl:`.

    Raises:
        RewardError: there is no such function, or a package that it needs is not installed; one line with the remedy.
    """
    columns: tuple[str, ...] = ()
    location = name
    file = name.removeprefix(VERL).rpartition(":")[0] or name
    if "," in name and not Path(file).is_file():
        raise RewardError(f"reward={name}: write several functions as a list, reward=[{name}]")
    if name.endswith(".py"):
        raise RewardError(f"reward={name}: say which of its functions, reward={name}:<function>")
    if ":" not in name:
        try:
            spec = registry.get("reward", name)
        except PluginError as error:
            raise RewardError(f"reward={name}: {error}") from error
        if missing := [module for module in spec.requires if find_spec(module) is None]:
            raise RewardError(f"the reward '{name}' needs {', '.join(missing)}; {spec.install_command}")
        location = spec.function if isinstance(spec.function, str) else location_of(spec.function)
        columns = spec.columns
    prefix = VERL if location.startswith(VERL) else ""
    found = FUNCTION.fullmatch(location.removeprefix(prefix))
    if found is None:
        raise RewardError(
            f"reward function '{name}' is not package.module:function, file.py:function or verl:<one of these>"
        )
    if found["module"].endswith(".py"):
        location = f"{prefix}{as_path(found['module'], RewardError).absolute()}:{found['name']}"
    return RewardFunction(name, location, tuple(dict.fromkeys([*columns, *needed_columns(load(location))])))
